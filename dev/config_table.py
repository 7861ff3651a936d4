#!/usr/bin/env python
"""Print the table of the plugin's config keys, made from tcl_d2/config/keys.py and ranges.py.

python dev/config_table.py > docs/config.md
"""

import argparse
from operator import attrgetter

from tcl_d2 import load_config
from tcl_d2.config.meanings import documented_keys
from tcl_d2.config.ranges import RANGES

HEAD = """# Config keys

The keys that the plugin adds to Detectron2's, and those whose default it changes. Made by `python dev/config_table.py`.

| key | default | range | meaning |
|---|---|---|---|"""


def table() -> str:
    """Return the table, in Markdown."""
    cfg = load_config()
    rows = [
        f"| `{key}` | `{attrgetter(key)(cfg)}` | {RANGES.get(key, '')} | {meaning} |"
        for key, meaning in documented_keys()
    ]
    return "\n".join([HEAD, *rows]) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table(), end="")
