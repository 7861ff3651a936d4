#!/usr/bin/env python
"""Bring ADE20K's validation set into place: `tcl-d2 prepare ade20k`."""

from tcl_d2.commands.prepare.ade20k import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
