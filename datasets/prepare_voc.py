#!/usr/bin/env python
"""Bring PASCAL VOC 2012 into place: `tcl-d2 prepare voc`."""

from tcl_d2.commands.prepare.voc import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
