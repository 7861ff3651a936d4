#!/usr/bin/env python
"""Bring PASCAL Context with all 459 classes into place: `tcl-d2 prepare context459`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "context459", *sys.argv[1:]])
