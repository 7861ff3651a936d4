#!/usr/bin/env python
"""Bring PASCAL Context with all 459 classes into place: `tcl-d2 prepare context459`."""

from tcl_d2.commands.prepare.context459 import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
