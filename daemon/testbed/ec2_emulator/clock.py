"""The emulator's clock: moved by hand, or faster than real time. Transitions, timestamps and limits use it."""

import threading
import time
from typing import Protocol

MANUAL_EPOCH_S = 1_750_000_000.0
"""2025-06-15 15:06:40 UTC: the beginning of a manual clock."""


class Clock(Protocol):
    """The emulated time."""

    def now(self) -> float:
        """The emulated time.time()."""
        ...

    def request_s(self) -> float:
        """A monotonic clock for the rate limits. It is the callers' clock, since the callers do not run faster."""
        ...

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        ...

    def real_s(self, seconds: float) -> float | None:
        """How many real seconds this takes; None if somebody moves the clock by hand."""
        ...


class ManualClock:
    """A clock that stands still until somebody moves it."""

    def __init__(self) -> None:
        self._now = MANUAL_EPOCH_S
        self._lock = threading.Lock()

    def now(self) -> float:
        return self._now

    def request_s(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("time does not go back")
        with self._lock:
            self._now += seconds

    def real_s(self, seconds: float) -> float | None:
        return None


class ScaledClock:
    """Begins at the real time and runs `speed` times as fast; `advance` jumps ahead."""

    def __init__(self, speed: float = 1.0) -> None:
        self._speed = speed
        self._began = time.monotonic()
        self._epoch = time.time()

    def now(self) -> float:
        return self._epoch + (time.monotonic() - self._began) * self._speed

    def request_s(self) -> float:
        return time.monotonic()

    def advance(self, seconds: float) -> None:
        self._epoch += seconds

    def real_s(self, seconds: float) -> float | None:
        return max(0.0, seconds) / self._speed
