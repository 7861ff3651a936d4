#!/usr/bin/env python
"""Bring PASCAL VOC 2012 into place: `tcl-d2 prepare voc`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "voc", *sys.argv[1:]])
