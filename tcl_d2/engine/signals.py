"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal): a run ends at a good moment, with its work saved."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class SignalCatcher:
    """Remembers STOP_SIGNALS in place of their action; a second one of the same has its action at once.

    Attributes:
        number: the first signal that came; 0 for none.
    """

    def __init__(self):
        self.number = 0
        self._handlers = {}

    def __enter__(self) -> "SignalCatcher":
        """Begin to catch the signals that have no handler: an evaluation within a training leaves them to that."""
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other
            for number in STOP_SIGNALS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._handlers):
            signal.signal(number, self._handlers.pop(number))

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number
        signal.signal(number, self._handlers.pop(number))


class StoppableLoader:
    """A loader's batches until a signal comes; then the run ends, between two batches, with its progress saved."""

    def __init__(self, loader: Iterable[list[dict]], save: Callable[[], None]):
        """Wrap a loader.

        Args:
            loader: gives batches of dataset dicts, and has a length.
            save: writes what is done.
        """
        self.loader = loader
        self.save = save

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        with SignalCatcher() as catcher:
            for batch in self.loader:
                yield batch
                if catcher.number:
                    self._stop(catcher.number)

    def _stop(self, number: int) -> None:
        self.save()
        name = signal.Signals(number).name
        logger.info("Stopped by %s, and what is done is saved: --eval-only --resume goes on from it", name)
        sys.exit(128 + number)
