"""One clear message in place of a stack of calls."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What the project, Detectron2 and its CfgNode raise for bad input.
_BAD_INPUT = (OSError, ValueError, KeyError, RuntimeError, AssertionError)


@contextmanager
def one_message(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program with an error's message, which says all: missing data or weights, wrong settings.

    Args:
        kinds: of errors that are meant, where they are not those of bad input.
    """
    expected = kinds or _BAD_INPUT
    try:
        yield
    except expected as error:
        sys.exit(f"error: {error.args[0] if isinstance(error, KeyError) else error}")
