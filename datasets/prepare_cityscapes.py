#!/usr/bin/env python
"""Bring Cityscapes' validation set into place: `tcl-d2 prepare cityscapes`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "cityscapes", *sys.argv[1:]])
