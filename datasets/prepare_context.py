#!/usr/bin/env python
"""Bring PASCAL Context into place: `tcl-d2 prepare context`."""

from tcl_d2.commands.prepare.context import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
