#!/usr/bin/env python
"""Describe a checkpoint, convert it, strip it, or compare two: `tcl-d2 convert`."""

from tcl_d2.commands.convert import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
