"""The options by which commands that segment are given their model."""

import argparse

from ...utils.imports import add_import_argument

SMALL_WORLD = "shapes/trained.yaml"  # the config of the model that comes with the project
TCL = "tcl"  # the method that is the model of the configuration
# The dense heads of the project, which --help lists without importing them
DENSE_HEADS = ("clearclip", "clip", "clip_dinoiser", "maskclip", "naclip", "proxyclip", "sclip")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --config-file, --model, --method, --import and, as the command's last, --opts."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", default=SMALL_WORLD, help="a config; default: the small world's model")
    model.add_argument("--model", help="official, shapes, a folder, OWNER/NAME on the Hugging Face hub, or a config")
    parser.add_argument(
        "--method",
        default=TCL,
        help=f"{TCL}: the model of the config (default); or its CLIP alone, without training: "
        f"{', '.join(DENSE_HEADS)}, or a dense head of yours",
    )
    add_import_argument(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")
