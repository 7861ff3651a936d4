#!/usr/bin/env python
"""Bring Cityscapes' validation set into place: `tcl-d2 prepare cityscapes`."""

from tcl_d2.commands.prepare.cityscapes import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
