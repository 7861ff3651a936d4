"""The files that a command is given: names, globs, folders, or a list on the standard input."""

import glob
import os
import sys
from itertools import filterfalse
from pathlib import Path

from ..utils.files import leads_back
from ..utils.images import IMAGE_SUFFIXES, is_leftover
from .result_folder import SETTINGS

SUFFIXES = {*IMAGE_SUFFIXES, ".bmp", ".gif", ".tif", ".tiff"}  # users have more kinds than datasets


def find_inputs(inputs: list[str], output: Path) -> dict[Path, str]:
    """Find the files to segment, each once; leftovers of other systems (._NAME) are skipped, unless they are named.

    Args:
        inputs: files, globs, folders (all images below them, but for results), or - for a list on the standard input.
        output: folder of the results, whose images are left out.

    Returns:
        for each file its path below the folder that is given, or below the common parent of all that are given.
    """
    # Read the list on the standard input
    lines = []
    for entry in inputs:
        lines += filterfalse(is_leftover, sys.stdin.read().splitlines()) if entry == "-" else [entry]
    lines = [line for line in lines if line]
    if not lines:
        raise FileNotFoundError("- found no names of files on the standard input")

    # Expand globs and folders
    paths, folders, empty = [], [], []
    for line in lines:
        # A file's name may have the letters of a glob. A missing file is reported in its turn.
        is_plain = os.path.lexists(line) or not glob.has_magic(line)
        matches = [line] if is_plain else sorted(filterfalse(_is_skipped, glob.glob(line, recursive=True)))
        files = [path for match in matches for path in _images_below(Path(match), output)]
        paths += files
        folders += [os.path.abspath(match if os.path.isdir(match) else os.path.dirname(match)) for match in matches]
        if not files:
            empty.append(line)
    if empty:
        raise FileNotFoundError(f"no images in {', '.join(empty)}; images end in {', '.join(sorted(SUFFIXES))}")

    root = os.path.commonpath(folders)
    path_by_place = {os.path.abspath(path): path for path in paths}
    return {path: os.path.relpath(place, root) for place, path in path_by_place.items()}


def _is_skipped(match: str) -> bool:
    """Return whether a glob's match is a leftover, or was found through a link that leads back."""
    return is_leftover(match) or any(map(leads_back, [Path(match), *Path(match).parents]))


def _images_below(path: Path, output: Path) -> list[Path]:
    """Return the images below a folder, without results of earlier runs; for any other path, the path itself."""
    if not os.path.isdir(path):
        return [path]

    files = []
    for folder, folders_below, names in os.walk(path):
        is_below = Path(folder) != path
        if is_below and os.path.realpath(folder) == os.path.realpath(output):
            folders_below.clear()
        elif is_below and SETTINGS in names:
            folders_below.clear()
            print(f"left out: {folder}, which has results of another run", file=sys.stderr)
        else:
            files += [Path(folder, name) for name in names]
    images = (file for file in files if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in images if not is_leftover(file.relative_to(path).as_posix()))
