#!/usr/bin/env python
"""Print the table of the plugin's config keys, made from tcl_d2/config/keys.py and ranges.py.

python dev/config_table.py > docs/config.md
"""

import argparse
import inspect
import re
from pathlib import Path

from tcl_d2 import load_config
from tcl_d2.assets import get_config_file
from tcl_d2.config import keys as config_keys
from tcl_d2.config.ranges import RANGES

HEAD = """# Config keys

The keys that the plugin adds to Detectron2's, and those whose default it changes. Made by `python dev/config_table.py`.

| key | default | range | meaning |
|---|---|---|---|"""


def documented_keys() -> list[tuple[str, str]]:
    """List the keys of defaults.yaml and of TCL's own, each with the comment just above it."""
    keys, comment, section = [], [], ""
    lines = Path(get_config_file("defaults.yaml")).read_text().splitlines()[1:]
    for line in [*lines, *inspect.getsource(config_keys).splitlines()]:
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif match := re.match(r"([A-Z]+):$", line):
            section = match[1]
        elif match := re.match(r"  ([A-Z_]+): |_C\.([A-Z0-9_.]+) = (?!CN\(\))", line):
            keys.append((f"{section}.{match[1]}" if match[1] else match[2], " ".join(comment)))
            comment = []
    return keys


def default_of(key: str) -> object:
    """Return the default of a key."""
    value = load_config()
    for part in key.split("."):
        value = value[part]
    return value


def table() -> str:
    """Return the table, in Markdown."""
    rows = [
        f"| `{key}` | `{default_of(key)}` | {RANGES.get(key, '')} | {comment} |" for key, comment in documented_keys()
    ]
    return "\n".join([HEAD, *rows]) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table(), end="")
