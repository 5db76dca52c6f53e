"""SIGTERM and SIGINT as a wish: the step in progress ends, a checkpoint is written, then the run stops."""

import signal
from types import FrameType


class StopOnSignal:
    """`asked` becomes true when the process is told to stop; the handlers do nothing else, and go back on exit."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopOnSignal":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
