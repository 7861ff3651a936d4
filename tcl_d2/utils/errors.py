"""One clear message in place of a stack of calls."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm

# What the project, Detectron2 and its CfgNode raise for bad input.
_BAD_INPUT = (OSError, ValueError, KeyError, RuntimeError, AssertionError)
_PATIENCE = 10.0  # seconds


@contextmanager
def one_message(*kinds: type[Exception]) -> Iterator[None]:
    """End the program with an error's message, which says all: missing data or weights, wrong settings.

    Of several processes, a machine's first one says what all have met.

    Args:
        kinds: of errors that are meant, where they are not those of bad input.
    """
    expected = kinds or _BAD_INPUT
    try:
        yield
    except expected as error:
        if comm.get_local_rank() > 0:
            time.sleep(_PATIENCE)  # if the first one has met it too, this process is ended meanwhile
        sys.exit(f"error: {_text(error)}")
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _text(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    if "\nOriginal Traceback" in text:  # what torch makes of an error in a loader's process
        return text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text
