#!/usr/bin/env python
"""Bring the full ADE20K into place: `tcl-d2 prepare ade847`."""

from tcl_d2.commands.prepare.ade847 import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
