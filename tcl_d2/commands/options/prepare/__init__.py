"""The options of `tcl-d2 prepare`."""
