#!/usr/bin/env python
"""Bring ADE20K's validation set into place: `tcl-d2 prepare ade20k`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "ade20k", *sys.argv[1:]])
