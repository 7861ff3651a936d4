"""Export a model for programs without torch or Detectron2.

The output's name says the format: .onnx, .pt2 (torch.export), or .npz (text embeddings alone, for a model that was
exported without classes). See docs/deploy.md.

    tcl-d2 export model.onnx --classes "brick, lava" --background    # the classes are in the file
    tcl-d2 export model.onnx                                         # text embeddings are an input
    tcl-d2 export words.npz --classes "brick, lava"                  # those of a vocabulary
    tcl-d2 export model.onnx --classes "brick, lava" --int8          # linear layers in 8 bits
"""

import argparse
from pathlib import Path

from .model import add_model_options
from .segment import add_background_option

SUFFIXES = (".onnx", ".pt2", ".npz")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help=f"the file to write; its name ends in {', '.join(SUFFIXES)}")
    parser.add_argument("--classes", help="as of tcl-d2 segment; none: text embeddings are an input of the model")
    add_background_option(parser)
    parser.add_argument("--labels", action="store_true", help="the graph gives labels of crops, in place of scores")
    parser.add_argument("--int8", action="store_true", help="hold the weights of linear layers in 8 bits (.onnx)")
    add_model_options(parser)
    return parser
