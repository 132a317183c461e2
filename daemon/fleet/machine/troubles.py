"""Which calls fail at the moment, and since when. Waiting clients are told that if nothing else is known. Pure.

Times are seconds of one monotonic clock.
"""

import math

from bentpipe.daemon.errors import BentpipeError, ProviderError, ProviderUnreachable, WakeFailed
from bentpipe.daemon.fleet.machine.failures import PASSING, consequence_of
from bentpipe.daemon.fleet.machine.rules import FAILURE_MOST_S, PATIENCE_S, UNREACHABLE_PATIENCE_S


class Trouble:
    """A series of calls of one kind, of which none has worked."""

    def __init__(self) -> None:
        self.error: BentpipeError | None = None
        """The last reason; None if the last call has worked."""
        self.since = 0.0
        self.last_at = -math.inf

    def failed(self, error: BentpipeError, now: float) -> None:
        """A call has failed. A failure long after the last one begins another series."""
        if self.error is None or now - self.last_at > PATIENCE_S + FAILURE_MOST_S:
            self.since = now
        self.error = error
        self.last_at = now

    def worked(self) -> None:
        """A call has worked."""
        self.error = None
        self.last_at = -math.inf


class Troubles:
    """The calls of one satellite: those that bring its machine up, and looks at it."""

    def __init__(self) -> None:
        self.start = Trouble()
        self.look = Trouble()

    @property
    def current(self) -> Trouble:
        """Why the satellite cannot be used, as far as failed calls show it."""
        return self.start if self.start.error is not None else self.look

    @property
    def patience_ends_at(self) -> float:
        """From then on waiting clients are told that every call fails."""
        current = self.current
        is_soon = isinstance(current.error, ProviderUnreachable)
        return current.since + (UNREACHABLE_PATIENCE_S if is_soon else PATIENCE_S)

    def has_failed_since(self, began: float) -> bool:
        """Whether a call has failed at `began` or later, and none has worked after it."""
        return self.current.error is not None and self.current.last_at >= began

    def lasts(self, now: float) -> bool:
        """Whether the failure does not pass by itself: people must mend it, or it has lasted too long already."""
        error = self.current.error
        passing = isinstance(error, ProviderError) and consequence_of(error) in PASSING
        return not passing or now >= self.patience_ends_at

    def last_reason(self, words: str) -> WakeFailed:
        """Make an error of `words` and the last reason for which a call has failed."""
        error = self.current.error
        if error is None:
            return WakeFailed(words)
        return WakeFailed(
            f"{words}; the last reason: {error}", peer_hint=f"{words}; the last reason: {error.peer_hint}"
        )

    def clear(self) -> None:
        """Forget both series."""
        self.start.worked()
        self.look.worked()
