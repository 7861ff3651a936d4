#!/usr/bin/env python
"""Serve a web page, a picture and words in, masks out: `tcl-d2 app`."""

from tcl_d2.commands.app import main
from tcl_d2.commands.options.app import argument_parser

if __name__ == "__main__":
    main(argument_parser().parse_args())
