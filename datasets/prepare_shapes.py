#!/usr/bin/env python
"""Draw the small world: `tcl-d2 prepare shapes`."""

from tcl_d2.commands.prepare.shapes import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
