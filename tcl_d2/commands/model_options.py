"""The model of a command that segments, by the options of `options.model`."""

import argparse
from collections.abc import Callable
from functools import partial

from ..config import load_config
from ..modeling import DENSE_HEAD_REGISTRY
from ..predictor import TCLPredictor
from ..utils.errors import expect
from ..utils.imports import import_code
from .options.model import TCL


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
