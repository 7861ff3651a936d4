#!/usr/bin/env python
"""Compare configurations on benchmarks; see tcl_d2/commands/compare.py."""

from tcl_d2.commands.compare import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
