"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal): a run ends at a good moment, with its work saved."""

import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class SignalCatcher:
    """Remembers STOP_SIGNALS instead of acting on them; a second one of the same kind acts at once.

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
