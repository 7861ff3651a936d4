"""The options by which commands that segment are given their model."""

import argparse
from collections.abc import Callable
from functools import partial

from ..config import load_config
from ..predictor import TCLPredictor
from ..utils.imports import add_import_argument, import_code

SMALL_WORLD = "shapes/trained.yaml"  # the config of the model that comes with the project


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --config-file, --model, --import and, as the command's last, --opts."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", default=SMALL_WORLD, help="a config; default: the small world's model")
    model.add_argument("--model", help="official, shapes, a folder, OWNER/NAME on the Hugging Face hub, or a config")
    add_import_argument(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")


def read_model(args: argparse.Namespace, *options: object) -> Callable[[], TCLPredictor]:
    """Import the user's code, and read the configuration where there is one; names that they register can be used then.

    Args:
        args: has the values of `add_model_options`.
        options: KEY, VALUE pairs over those of --opts.

    Returns:
        a function that builds the predictor.
    """
    for name in args.imports:
        import_code(name)

    options = (*args.opts, *options)
    if args.model:
        return partial(TCLPredictor.from_pretrained, args.model, *options)
    return partial(TCLPredictor, load_config(args.config_file, options))
