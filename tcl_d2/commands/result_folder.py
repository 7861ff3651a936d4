"""The folder of results: where those of each image go, which are done, and which files must not be replaced."""

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from ..segmentation.result import is_result_picture, result_paths, shorten
from ..utils.files import remove_unfinished, replacing, stat_file

PURPOSE = "segmentation"  # names the folder's lock
SETTINGS = "result_settings.json"  # of the last run; a folder that has it is a folder of results
_ENDINGS = re.compile(r"\.png|_labels\.png|_boxes\.(png|json)|_\d+_\w*\.png")  # of the files beside NAME.json


class Source(NamedTuple):
    """An image, the name of its results, which may have folders, and the origin that their JSON records."""

    path: Path
    name: str
    state: dict


class ResultFolder:
    """The results of a run's images.

    The JSON of a result is written last. It records the image and its state, a digest of the settings, and the files
    beside it: a result is done if all of that is still true.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[Path, str],
        heat_maps: Sequence[str] = (),
        boxes: bool = False,
        overlay: bool = True,
    ):
        """Name the results, and remove the unfinished files of a run that was killed.

        Args:
            files: the images, with their paths below the folder that was given, see find_inputs.
            heat_maps, boxes, overlay: which files are written of each, see `result_paths`.

        Raises:
            ValueError: an image lies where results go, or a file that is no result lies in the place of one.
        """
        self.folder = folder
        self.sources = []
        for path, name in result_names(files, heat_maps).items():
            size, time = stat_file(path) or (None, None)
            image = {"path": os.path.abspath(path), "size": size, "mtime_ns": time}
            self.sources.append(Source(path, name, {"source": image}))
        self._heat_maps = heat_maps

        # No file of others is replaced
        places = {(folder / source.name).parent for source in self.sources}
        check_apart(files, places)
        for place in places:
            remove_unfinished(place)
        for source in self.sources:
            written = result_paths(folder, source.name, heat_maps, boxes, overlay)
            for path in set(self._find_files(source)[1]).intersection(written):
                raise ValueError(
                    f"{path} is no result of an earlier run, and that of {source.path} would replace it: move it, or "
                    "give another folder"
                )

    def begin(self, settings: Mapping[str, object], resume: bool = False) -> list[Source]:
        """Write the settings of a run, remove earlier results that it replaces, and return the images left to do.

        Args:
            settings: all that results depend on, by name; JSON.
            resume: whether to keep the results that are done; ValueError if they were made with other settings.
        """
        # Resume with the same settings only
        path = self.folder / SETTINGS
        text = check_settings(path, settings, resume)

        # A result of an earlier run must not be taken for that of an image that is not done yet
        digest = {"settings": digest_settings(text)}
        sources = [source._replace(state=source.state | digest) for source in self.sources]
        left = [source for source in sources if not (resume and self._is_done(source))]
        for source in left:
            for stale in self._find_files(source)[0]:
                stale.unlink(missing_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_text(text)
        return left

    def done(self) -> list[Source]:
        """Return the images that have their results."""
        return list(filter(self._is_done, self.sources))

    def finish(self) -> NoReturn:
        """Print how many images have their results, and exit with 1 unless all have."""
        num_done = len(self.done())
        print(f"{num_done} of {len(self.sources)} images segmented, in {self.folder}")
        sys.exit(1 if num_done < len(self.sources) else 0)

    def _is_done(self, source: Source) -> bool:
        *_, labels, areas = result_paths(self.folder, source.name, overlay=False)
        content = _read_json(areas)
        files = _listed_files(areas, content)
        is_of_source = all(content.get(key) == value for key, value in source.state.items())
        return is_of_source and labels in files and all(_has_size(path, size) for path, size in files.items())

    def _find_files(self, source: Source) -> tuple[list[Path], list[Path]]:
        """Return the files by the names of an image's results: those of earlier runs, and those of others.

        Listed files may be damaged, and a run that was killed has not listed its files.
        """
        paths = result_paths(self.folder, source.name, self._heat_maps, boxes=True)
        listed = _listed_files(paths[-1], _read_json(paths[-1]))
        has_results = bool(listed) or is_result_picture(paths[1])

        ours, others = [path for path, size in listed.items() if path not in paths and _has_size(path, size)], []
        for path in filter(os.path.lexists, paths):
            is_ours = path in listed or (has_results if path.suffix == ".json" else is_result_picture(path))
            (ours if is_ours else others).append(path)
        return ours, others


def check_settings(path: Path, settings: Mapping[str, object], resume: bool) -> str:
    """Return the text of a run's settings for their file; ValueError to resume one of others."""
    text = json.dumps(settings, indent=1, default=str)
    settings, recorded = json.loads(text), _read_json(path)
    if path.exists() and not recorded:
        raise ValueError(f"{path} has no settings of results: remove it, or give another folder")
    differing = [key for key in {**settings, **recorded} if settings.get(key) != recorded.get(key)]
    if resume and recorded and differing:
        raise ValueError(
            f"--resume: the results in {path.parent} were made with other settings ({', '.join(differing)}): give "
            "another folder, or go without --resume to make them again"
        )
    return text


def digest_settings(text: str) -> str:
    """Return the digest of settings that each result records."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def result_names(files: Mapping[Path, str], heat_maps: Sequence[str] = ()) -> dict[Path, str]:
    """Name each image's results: by its path without the suffix, or with it if they would replace another image's."""
    names = {path: _result_name(relative) for path, relative in files.items()}
    for ending in ("suffix", "digest"):
        # The places that are taken, on a disk that ignores case
        written = {path: result_paths("", name, heat_maps, boxes=True) for path, name in names.items()}
        counts = Counter(str(file).casefold() for paths in written.values() for file in paths)
        counts.update({str(folder).casefold() for name in names.values() for folder in Path(name).parents} | {SETTINGS})
        for path, paths in written.items():
            if any(counts[str(file).casefold()] > 1 for file in paths):
                names[path] = _result_name(files[path], ending)
    return names


def _result_name(relative: str, ending: str = "") -> str:
    folder, name = os.path.split(relative)
    short = name if ending else Path(name).stem
    if ending == "digest" or shorten(short) != short:
        short = f"{shorten(short)}-{hashlib.blake2b(os.fsencode(name), digest_size=4).hexdigest()}"
    return os.path.join(folder, short)


def check_apart(inputs: Iterable[Path], folders: Iterable[Path]) -> None:
    """Raise a ValueError if an input lies in a folder that results go to, where one might replace it."""
    taken = {os.path.realpath(folder) for folder in folders}
    for path in inputs:
        if taken & {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}:
            raise ValueError(
                f"{path} lies in --output, in a folder of the results, where one might replace it: give another folder"
            )


def _read_json(path: Path) -> dict:
    """Return the content of a JSON file; an empty dict unless it is one."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _listed_files(areas: Path, content: Mapping[str, object]) -> dict[Path, object]:
    """Return the sizes of the files that a JSON lists beside it, but only of those named as its own results."""
    files, stem = content.get("files"), areas.stem
    if not isinstance(files, dict):
        return {}
    own = (name for name in files if name.startswith(stem) and _ENDINGS.fullmatch(name, len(stem)))
    return {areas.with_name(name): files[name] for name in own}


def _has_size(path: Path, size: object) -> bool:
    return (stat_file(path) or [None])[0] == size
