"""The options of `tcl-d2 prepare` for what no release has; those of releases are in `data.releases`."""
