#!/usr/bin/env python
"""Make the index of an image archive; see tcl_d2/commands/index.py."""

from tcl_d2.commands.index import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
