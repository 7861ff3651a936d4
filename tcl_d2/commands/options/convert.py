"""Describe a checkpoint, convert it between layouts and formats, strip it, or compare two.

It reads .pth and .safetensors files, ours and the official TCL release's, and writes the format of the name's suffix.

    tcl-d2 convert model_final.pth                               # what it is
    tcl-d2 convert tcl.pth ours.pth                              # official -> ours
    tcl-d2 convert model_final.pth official.pth --to official    # loads in the official code
    tcl-d2 convert model_final.pth small.safetensors --strip     # without CLIP and training state
    tcl-d2 convert model_final.pth small.safetensors --check     # the same outputs?
    tcl-d2 convert model_final.pth --hub FOLDER                  # for TCLPredictor.from_pretrained, and for the hub
"""

import argparse
from pathlib import Path


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path, nargs="?", help="none: describe the input")
    parser.add_argument("--to", choices=("ours", "official"), default="ours", help="layout of the output")
    parser.add_argument("--strip", action="store_true", help="leave out the frozen CLIP, losses and training state")
    parser.add_argument("--freeze", type=int, help="MODEL.TCL.FREEZE, where the input does not say it")
    parser.add_argument("--hub", type=Path, metavar="FOLDER", help="write weights, configuration and model card there")
    parser.add_argument("--check", action="store_true", help="write nothing; compare the two files' outputs")
    parser.add_argument("--config-file", help="for --check and --hub; default: what a checkpoint carries")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="changes to the configuration")
    return parser
