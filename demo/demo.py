#!/usr/bin/env python
"""Segment pictures, a video or a webcam's frames into words of yours: `tcl-d2 segment`."""

from tcl_d2.commands.options.segment import argument_parser
from tcl_d2.commands.segment import main

if __name__ == "__main__":
    main(argument_parser().parse_args())
