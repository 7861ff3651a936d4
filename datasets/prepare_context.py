#!/usr/bin/env python
"""Bring PASCAL Context into place: `tcl-d2 prepare context`."""

import sys

from tcl_d2.commands import main

if __name__ == "__main__":
    main(["prepare", "context", *sys.argv[1:]])
