#!/usr/bin/env python
"""Bring COCO's validation images and COCO-Stuff's maps into place: `tcl-d2 prepare coco`."""

from tcl_d2.commands.prepare.coco import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
