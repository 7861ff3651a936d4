"""One clear message in place of a stack of calls."""

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper

# What the project, Detectron2 and its CfgNode raise for bad input.
_BAD_INPUT = (OSError, ValueError, KeyError, RuntimeError, AssertionError)
_PATIENCE = 10.0  # seconds that the other processes wait for the first one's message
_SHOWN = 20  # problems printed in full; the rest are counted


@contextmanager
def one_message(*types: type[Exception]) -> Iterator[None]:
    """End the program with the message of an error about bad input, such as missing data or wrong settings.

    Of several processes, the first one of each machine says what all of them have met. What is printed from here on
    never ends a program for letters that the standard output cannot encode.

    Args:
        types: types of errors to catch; by default those of bad input.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # names of files and words may have letters that it has no code for
        sys.stdout.reconfigure(errors="backslashreplace")
    expected = types or _BAD_INPUT
    try:
        yield
    except expected as error:
        # What runs in several processes has imported Detectron2's communication
        comm = sys.modules.get("detectron2.utils.comm")
        if comm is not None and comm.get_local_rank() > 0:
            time.sleep(_PATIENCE)  # if the first process has met it too, this one is ended meanwhile
        sys.exit(f"error: {_text(error)}")
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def expect(is_right: bool, key: str, value: object, expected: str) -> None:
    """Raise a ValueError that names a configuration key, unless its value is right."""
    if not is_right:
        raise ValueError(f"{key} is {value}; expected {expected}.")


@contextmanager
def named(key: str) -> Iterator[None]:
    """Put "KEY: " before the message of an OSError or ValueError; a KeyError becomes a ValueError."""
    try:
        yield
    except OSError as error:
        is_plain = type(error).__module__ == "builtins"  # others, such as HTTPError, are not built from a text
        raise (type(error) if is_plain else OSError)(f"{key}: {error}") from None
    except (KeyError, ValueError) as error:
        raise ValueError(f"{key}: {_text(error)}") from None


def _text(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    if "\nOriginal Traceback" in text:  # what torch makes of an error in a loader's process
        return text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text


def list_problems(problems: Iterable[object]) -> str:
    """Return lines for an error: the first problems, and how many more there are."""
    problems = list(problems)
    lines = [str(problem) for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"... and {len(problems) - _SHOWN} more")
    return "\n".join(f"  {line}" for line in lines)
