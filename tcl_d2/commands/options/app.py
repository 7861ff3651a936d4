"""Serve a web page: a picture and words in, masks out.

tcl-d2 app                      # the small world's model, http://127.0.0.1:7860
tcl-d2 app --model official     # the official tcl.pth
tcl-d2 app --method sclip       # begin with its CLIP alone; the page has all methods to choose from
tcl-d2 app --server-name 0.0.0.0 --auth users.txt    # for others, see docs/serve.md
"""

import argparse

from .model import add_model_options


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", "--server-name", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", "--server-port", type=int, default=7860)
    parser.add_argument("--auth", metavar="FILE", help="a line NAME:PASSWORD for each visitor who is let in")
    parser.add_argument(
        "--max-size", type=int, default=16, metavar="MEGAPIXELS", help="of a picture, in a file of as many megabytes"
    )
    parser.add_argument("--queue-size", type=int, default=100, metavar="N", help="requests that may wait at a time")
    add_model_options(parser)
    return parser
