"""The options by which commands that segment are given their model."""

import argparse
from collections.abc import Callable
from functools import partial

from ..config import load_config
from ..modeling import DENSE_HEAD_REGISTRY
from ..predictor import TCLPredictor
from ..utils.errors import expect
from ..utils.imports import add_import_argument, import_code

SMALL_WORLD = "shapes/trained.yaml"  # the config of the model that comes with the project
TCL = "tcl"  # the method that is the model of the configuration


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --config-file, --model, --method, --import and, as the command's last, --opts."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", default=SMALL_WORLD, help="a config; default: the small world's model")
    model.add_argument("--model", help="official, shapes, a folder, OWNER/NAME on the Hugging Face hub, or a config")
    parser.add_argument(
        "--method",
        default=TCL,
        help=f"{TCL}: the model of the config (default); or its CLIP alone, without training: "
        f"{', '.join(method_names()[1:])}, or a dense head of yours",
    )
    add_import_argument(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")


def read_model(args: argparse.Namespace, *options: object) -> Callable[[], TCLPredictor]:
    """Import the user's code, read the configuration, and return a function that builds its predictor.

    After it, names that they register can be used; `with_method` makes the predictor of --method.

    Args:
        options: KEY, VALUE pairs over those of --opts.
    """
    for name in args.imports:
        import_code(name)
    expect(args.method in method_names(), "--method", args.method, f"one of {', '.join(method_names())}")

    options = (*args.opts, *options)
    if args.model:
        return partial(TCLPredictor.from_pretrained, args.model, *options)
    return partial(TCLPredictor, load_config(args.config_file, options))


def method_names() -> list[str]:
    """List the methods: the model of the configuration, and the dense heads for its CLIP."""
    return [TCL, *sorted(name for name, _ in DENSE_HEAD_REGISTRY)]


def with_method(predictor: TCLPredictor, method: str) -> TCLPredictor:
    """Return the predictor of one of method_names, from that of the configuration."""
    return predictor if method == TCL else predictor.with_dense_head(method)
