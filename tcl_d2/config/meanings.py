"""What each key means: the comments of keys.py and defaults.yaml, and the meanings of keys that others add."""

import inspect
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from textwrap import fill

from detectron2.config import CfgNode

from ..assets import get_config_file
from . import keys
from .ranges import RANGES


def documented_keys() -> list[tuple[str, str]]:
    """List the keys of defaults.yaml and of TCL's own with the comment just above each; then those that were added."""
    documented, comment, section = [], [], ""
    lines = Path(get_config_file("defaults.yaml")).read_text().splitlines()[1:]
    for line in [*lines, *inspect.getsource(keys).splitlines()]:
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif match := re.match(r"([A-Z]+):$", line):
            section = match[1]
        elif match := re.match(r"  ([A-Z_]+): |_C\.([A-Z0-9_.]+) = (?!CN\(\))", line):
            documented.append((f"{section}.{match[1]}" if match[1] else match[2], " ".join(comment)))
            comment = []
    return [*documented, *keys.ADDED.items()]


def describe_keys(cfg: CfgNode, part: str = "") -> Iterator[str]:
    """Yield a paragraph for each key whose name has `part`: its value in a configuration, its range and its meaning."""
    for key, meaning in documented_keys():
        if part.upper() in key:
            limits = f"  ({RANGES[key]})" if key in RANGES else ""
            text = fill(meaning, 100, initial_indent="    ", subsequent_indent="    ")
            yield f"{key} {attrgetter(key)(cfg)!r}{limits}\n{text}"
