"""The run of a program: its processes, the signals that stop it, and its output folder."""
