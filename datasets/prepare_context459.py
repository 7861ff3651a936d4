#!/usr/bin/env python
"""Bring PASCAL Context with all 459 classes into place: `tcl-d2 prepare context459`."""

from tcl_d2.commands.prepare.context459 import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
