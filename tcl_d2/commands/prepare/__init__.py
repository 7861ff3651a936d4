"""The commands that bring datasets into place, `tcl-d2 prepare NAME`: a module each."""
