"""SIGTERM and Ctrl-C, put off until the state can be saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop.

    Attributes:
        status: Exit status of the process, 128 + the signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.status = 128 + number


class Stop:
    """Whether a signal has asked the run to stop.

    Attributes:
        number: The first signal that came, None before.
        patient: Whether a signal is only noted; if not, it raises `Interrupted` at once. A second
            signal always does.
    """

    def __init__(self):
        self.number: int | None = None
        self.patient = False

    def receive(self, number: int, frame) -> None:
        """Takes a signal."""
        del frame
        if self.patient and self.number is None:
            self.number = number
        else:
            raise Interrupted("", number)


@contextlib.contextmanager
def noted() -> Iterator[Stop]:
    """Hands SIGTERM and SIGINT to a `Stop` meanwhile; only a process's main thread gets any."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop.receive) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
