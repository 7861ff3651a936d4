"""The version, for setup.py and for what is written beside results."""

__version__ = "0.2.0"
