#!/usr/bin/env python
"""Bring COCO's validation images and COCO-Stuff's maps into place: `tcl-d2 prepare coco`."""

from tcl_d2.commands.prepare.coco import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
