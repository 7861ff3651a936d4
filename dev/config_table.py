#!/usr/bin/env python
"""Prints the table of the plugin's config keys, from the comments in tcl_d2/config.py.

python dev/config_table.py > docs/config.md
"""

import inspect
import re

from tcl_d2 import add_tcl_config, load_config

HEAD = """# Config keys

What the plugin adds to Detectron2's keys, or gives another default. Made by `python dev/config_table.py`.

| key | default | what it is |
|---|---|---|"""


def documented_keys() -> list[tuple[str, str]]:
    """(key, comment) of every key that add_tcl_config sets; the comment stands just above."""
    keys, comment = [], []
    for line in inspect.getsource(add_tcl_config).splitlines():
        line = line.strip()
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif match := re.match(r"cfg\.([A-Z0-9_.]+) = (?!CN\(\))", line):
            keys.append((match[1], " ".join(comment)))
            comment = []
    return keys


def value_of(key: str):
    cfg = load_config()
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def table() -> str:
    rows = [f"| `{key}` | `{value_of(key)}` | {comment} |" for key, comment in documented_keys()]
    return "\n".join([HEAD, *rows]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
