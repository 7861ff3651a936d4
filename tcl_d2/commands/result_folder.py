"""The folder of results: a name for each file's results, and a record of what they are of, to go on from."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..segmentation import result_paths, shorten
from ..utils.files import check_folder, remove_unfinished, replacing, stat_file

RECORD = "record_of_results.json"


class Source(NamedTuple):
    """A file and the name of its results.

    Attributes:
        path: of the file.
        name: how the names of its results begin.
    """

    path: Path
    name: str


class ResultFolder:
    """A folder of results, whose record says which files they are of, and with which settings they were made.

    A file is done when its areas are there, which are written last.
    """

    def __init__(self, folder: Path):
        """Make the folder, and remove the unfinished files of a run that was killed.

        Raises:
            OSError: the folder cannot be made, or nothing can be written in it.
        """
        self.folder = folder
        check_folder(folder, f"--output {folder} cannot be the folder of the results")
        remove_unfinished(folder)

    def check_inputs(self, inputs: Iterable[Path]) -> None:
        """Raise a ValueError if an input lies in the folder, where a result might replace it."""
        folder = self.folder.resolve()
        in_folder = {parent for parent in {path.parent for path in inputs} if parent.resolve() == folder}
        for path in inputs:
            if path.parent in in_folder or (path.is_symlink() and path.resolve().parent == folder):
                raise ValueError(
                    f"{path} lies in --output {self.folder}, where results might replace it: give another folder"
                )

    # ------------------------------------------------------------------------------------ the record

    def begin(
        self,
        inputs: Sequence[Path],
        settings: Mapping[str, object],
        heat_maps: Sequence[str] = (),
        resume: bool = False,
        boxes: bool = False,
    ) -> list[Source]:
        """Write the record of a run, and return the files that are left to do.

        Args:
            inputs: the files, each once.
            settings: what results depend on, by name; JSON.
            heat_maps: class words that heat maps are drawn of.
            resume: whether to leave out the files that are done, and have not changed since.
            boxes: whether boxes are drawn.

        Raises:
            ValueError: the results that are there were made with other settings; names them.
        """
        # Go on from a record with the same settings
        settings = json.loads(json.dumps(settings, default=str))
        earlier = self._read_earlier(resume)
        record = earlier if resume and earlier else {"settings": settings, "files": {}}
        recorded = record["settings"]
        differing = [key for key in {**settings, **recorded} if settings.get(key) != recorded.get(key)]
        if differing:
            raise ValueError(
                f"--resume: the results in {self.folder} were made with other settings ({', '.join(differing)}): give "
                "another folder, or go without --resume to make them again"
            )

        # Name the files, those of the record as before
        path_by_key = {os.path.abspath(path): path for path in inputs}
        known = record["files"]
        new = {key: path for key, path in path_by_key.items() if key not in known}
        known_names = [file["name"] for file in known.values()]
        new_names = result_names(list(new.values()), heat_maps, known_names, boxes)
        names = {key: file["name"] for key, file in known.items()} | dict(zip(new, new_names))

        # What is left; a result of an earlier run must not be taken for a file's that is not done yet
        files = {key: {"name": names[key], "state": stat_file(key)} for key in path_by_key}
        left = [key for key, file in files.items() if known.get(key) != file or not self._is_done(file)]
        for key in left:
            self._remove_results(files[key])
        self._remove_pictures(earlier, {files[key]["name"] for key in left})
        record = {"settings": settings, "heat_maps": list(heat_maps), "boxes": boxes, "files": known | files}
        with replacing(self.folder / RECORD) as unfinished:
            unfinished.write_text(json.dumps(record, indent=0))
        return [Source(path_by_key[key], names[key]) for key in left]

    def num_done(self, inputs: Iterable[Path]) -> int:
        """Return how many of the files of the record have their results."""
        files = self._read()["files"]
        return sum(self._is_done(files[key]) for key in map(os.path.abspath, inputs))

    def _read_earlier(self, resume: bool) -> dict:
        """Return the record of an earlier run; empty where there is none, or a damaged one without --resume."""
        try:
            return self._read() if (self.folder / RECORD).exists() else {}
        except ValueError:
            if resume:
                raise
            return {}

    def _read(self) -> dict:
        """Return the record of a run; ValueError where the file is no record."""
        path = self.folder / RECORD
        try:
            record = json.loads(path.read_text())
            pictures = {"heat_maps": list(record.get("heat_maps", ())), "boxes": bool(record.get("boxes"))}
            return {"settings": dict(record["settings"]), **pictures, "files": dict(record["files"])}
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path} is no record of results: give another folder, or go without --resume") from None

    def _is_done(self, file: Mapping[str, object]) -> bool:
        return self._areas_path(file).exists()

    def _remove_results(self, file: Mapping[str, object]) -> None:
        """Remove the overlay and the areas of an earlier run; an overlay without them may be a file of the user's."""
        overlay, labels, areas = result_paths(self.folder, file["name"])
        if labels.exists() and areas.exists():
            overlay.unlink(missing_ok=True)
        areas.unlink(missing_ok=True)

    def _remove_pictures(self, earlier: Mapping[str, object], names: Container[str]) -> None:
        """Remove heat maps and boxes that an earlier run made by these names: they are of other labels."""
        for file in earlier.get("files", {}).values():
            if file["name"] in names:
                paths = result_paths(self.folder, file["name"], earlier["heat_maps"], earlier["boxes"])
                for path in paths[3:]:
                    path.unlink(missing_ok=True)

    def _areas_path(self, file: Mapping[str, object]) -> Path:
        return result_paths(self.folder, file["name"])[2]


def result_names(
    paths: Sequence[Path], heat_maps: Sequence[str] = (), taken_names: Iterable[str] = (), boxes: bool = False
) -> list[str]:
    """Choose a name for each file's results: its stem, with a number where a result would replace another file's.

    Args:
        paths: the files.
        heat_maps: class words that heat maps are drawn of.
        taken_names: names that other files' results have.
        boxes: whether boxes are drawn.
    """
    # What there is to choose from
    stems = [shorten(path.stem) for path in paths]
    counts = Counter(stems)
    candidates = {stem: _candidates(stem, is_unique=counts[stem] == 1) for stem in counts}
    taken = {RECORD}
    for name in taken_names:
        taken |= _file_names(name, heat_maps, boxes)

    # Name files with unique stems first, so that they keep their stems
    names = [""] * len(paths)
    for index in sorted(range(len(paths)), key=lambda index: counts[stems[index]] > 1):
        for name in candidates[stems[index]]:
            files = _file_names(name, heat_maps, boxes)
            if taken.isdisjoint(files):
                names[index] = name
                taken |= files
                break
    return names


def _file_names(name: str, heat_maps: Sequence[str], boxes: bool) -> set[str]:
    """Return the names of a file's results as a disk compares them that takes no heed of case."""
    return {path.name.casefold() for path in result_paths(Path(), name, heat_maps, boxes)}


def _candidates(stem: str, is_unique: bool) -> Iterator[str]:
    """Yield names to try for files of a stem: the stem itself if it is unique, then with numbers."""
    if is_unique:
        yield stem
    for number in itertools.count(1):
        yield f"{stem}_{number}"
