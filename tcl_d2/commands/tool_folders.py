"""The folders of `--save`: a segmentation's labels for annotation tools, where people may correct them."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.labels import read_label
from ..segmentation.result import result_paths
from ..segmentation.tool_files import MASKS, WRITERS, LabeledPicture, check_words
from ..utils.files import replacing, stat_file
from ..words.words import Words
from .result_folder import Source


class ToolFolders:
    """A folder for each tool in the folder of results, which comes to its place whole.

    It is written anew by each run, after all pictures, unless labels in it were changed: .FORMAT.files.json beside it
    has the sizes and times of their files.
    """

    def __init__(self, folder: Path, formats: Iterable[str], words: Words, names: Iterable[str]):
        """Check that folders can be written.

        Args:
            folder: of the results.
            formats: names of WRITERS.
            names: of the results.

        Raises:
            ValueError: a folder was changed, or has the name of a folder of results; or see check_words.
        """
        self.folder = folder
        self.formats = sorted(set(formats))
        first, last = int(words.has_background), len(words.names) - bool(words.negative)
        self.words = words.names[first:last]
        self._numbers = np.zeros(len(words.names), int)  # by label; negative words are of the background
        self._numbers[first:last] = np.arange(1, last - first + 1)

        check_words(self.words, self.formats)
        taken = {name.split("/")[0] for name in names if "/" in name}
        for name in self.formats:
            if name in taken:
                raise ValueError(f"--save {name}: results of a folder '{name}' go there too: give that folder alone")
            self._check_unchanged(name)

    def write(self, sources: Sequence[Source]) -> None:
        """Write the folders of pictures that have their results."""
        for name in self.formats:
            unfinished, place = self.folder / f".{name}.tmp", self.folder / name
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            WRITERS[name](unfinished, tqdm(map(self._read, sources), name, len(sources), unit="image"), self.words)

            # Another folder may not be replaced by one step
            self._check_unchanged(name)
            shutil.rmtree(place, ignore_errors=True)
            with replacing(self._record(name)) as file:
                file.write_text(json.dumps(_stat_files(unfinished)))
            os.replace(unfinished, place)
            print(f"{len(sources)} images for {name}: {place}")

    def _read(self, source: Source) -> LabeledPicture:
        _, labels, _, boxes, _ = result_paths(self.folder, source.name, boxes=True)
        objects = json.loads(boxes.read_bytes()) if boxes.exists() else []
        return LabeledPicture(source.name, source.path, self._numbers[read_label(str(labels))], objects)

    def _record(self, name: str) -> Path:
        return self.folder / f".{name}.files.json"

    def _check_unchanged(self, name: str) -> None:
        place, record = self.folder / name, self._record(name)
        if place.exists() and (not record.exists() or json.loads(record.read_bytes()) != _stat_files(place)):
            raise ValueError(
                f"--save {name}: {place} has files that were changed since they were written, such as corrected "
                "labels: move that folder, or give another --output"
            )


def _stat_files(folder: Path) -> dict[str, list[int] | None]:
    """Return the size and time of each file of labels in a tool's folder, by its path."""
    paths = (path for pattern in ("**/*.json", "**/*.txt", f"{MASKS}/**/*.png") for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): stat_file(path) for path in sorted(paths)}
