#!/usr/bin/env python
"""Draw LVIS v1's validation annotations as label maps: `tcl-d2 prepare lvis`."""

from tcl_d2.commands.prepare.lvis import PREPARATION

if __name__ == "__main__":
    PREPARATION.main(PREPARATION.argument_parser().parse_args())
