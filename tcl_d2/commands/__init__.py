"""The command line: a module for each command, with `argument_parser()` and `main(args)`."""
