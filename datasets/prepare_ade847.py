#!/usr/bin/env python
"""Bring the full ADE20K into place: `tcl-d2 prepare ade847`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "ade847", *sys.argv[1:]])
