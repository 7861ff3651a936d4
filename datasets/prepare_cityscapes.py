#!/usr/bin/env python
"""Bring Cityscapes' validation set into place: `tcl-d2 prepare cityscapes`."""

from tcl_d2.commands.prepare.cityscapes import argument_parser, main

if __name__ == "__main__":
    main(argument_parser().parse_args())
