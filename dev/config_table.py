#!/usr/bin/env python
"""Print the table of the plugin's config keys, made from the comments in tcl_d2/config.py.

python dev/config_table.py > docs/config.md
"""

import argparse
import inspect
import re

from tcl_d2 import add_tcl_config, load_config

HEAD = """# Config keys

The keys that the plugin adds to Detectron2's, and those whose default it changes. Made by `python dev/config_table.py`.

| key | default | meaning |
|---|---|---|"""


def documented_keys() -> list[tuple[str, str]]:
    """List the keys that add_tcl_config sets, each with the comment just above it."""
    keys, comment = [], []
    for line in inspect.getsource(add_tcl_config).splitlines():
        line = line.strip()
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif match := re.match(r"cfg\.([A-Z0-9_.]+) = (?!CN\(\))", line):
            keys.append((match[1], " ".join(comment)))
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
    rows = [f"| `{key}` | `{default_of(key)}` | {comment} |" for key, comment in documented_keys()]
    return "\n".join([HEAD, *rows]) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table(), end="")
