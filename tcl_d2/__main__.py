"""`python -m tcl_d2` is `tcl-d2`."""

from .commands import main

if __name__ == "__main__":
    main()
