"""Serve a web page: a picture and words in, masks out.

tcl-d2 app                      # the small world's model, http://127.0.0.1:7860
tcl-d2 app --model official     # the official tcl.pth
tcl-d2 app --method sclip       # begin with its CLIP alone; the page has all methods to choose from
"""

import argparse

from .model import add_model_options


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    add_model_options(parser)
    return parser
