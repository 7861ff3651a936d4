#!/usr/bin/env python
"""Draw the small world: `tcl-d2 prepare shapes`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "shapes", *sys.argv[1:]])
