"""Pairs of image and caption to train on; `tcl_d2.data` hands on their names."""
