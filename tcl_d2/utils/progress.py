"""The progress bar of commands that also run where tqdm is not installed."""

import sys
from collections.abc import Iterable, Iterator

try:
    from tqdm import tqdm
except ImportError:

    class tqdm:  # noqa: N801
        """A stand-in without a bar, for deployed models."""

        def __init__(self, iterable: Iterable, **settings: object):
            self._iterable = iterable

        def __iter__(self) -> Iterator:
            return iter(self._iterable)

        @staticmethod
        def write(text: str, file: object = None) -> None:
            print(text, file=file or sys.stdout)


__all__ = ["tqdm"]
