#!/usr/bin/env python
"""Count and measure what models cost; see tcl_d2/commands/analyze_model.py."""

from tcl_d2.commands.analyze_model import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
