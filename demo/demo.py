#!/usr/bin/env python
"""Segment pictures, a video or a webcam's frames into words of yours: `tcl-d2 segment`."""

from tcl_d2.commands.segment import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
