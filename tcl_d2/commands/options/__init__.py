"""The options of the commands, a module each, without the imports of their work: help and errors come at once."""
