#!/usr/bin/env python
"""Bring COCO's validation images and COCO-Stuff's maps into place: `tcl-d2 prepare coco`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "coco", *sys.argv[1:]])
