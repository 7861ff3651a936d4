#!/usr/bin/env python
"""Describe a checkpoint, convert it, strip it, or compare two: see tcl_d2/commands/convert.py."""

from tcl_d2.commands.convert import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
