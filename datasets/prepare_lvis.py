#!/usr/bin/env python
"""Draw LVIS v1's validation annotations as label maps: `tcl-d2 prepare lvis`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "lvis", *sys.argv[1:]])
