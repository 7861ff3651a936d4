#!/usr/bin/env python
"""Bring the full ADE20K into place: `tcl-d2 prepare ade847`."""

from tcl_d2.commands.prepare.ade847 import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
