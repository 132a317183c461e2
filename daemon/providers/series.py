"""Says a series of failures once: its beginning, every change of its reason, a reminder now and then, and its end.

A call that fails a thousand times is one trouble. The log has the provider's own words, which clients are never told.
"""

import logging
import math
from collections.abc import Mapping

from bentpipe.daemon.errors import ProviderError

REMINDER_S = 600.0
"""Between lines about a trouble that stays the same: so that the log's last hour shows it, and is not filled by it."""


class Series:
    """The calls of one kind, of which some fail."""

    def __init__(self, log: logging.Logger, what: str, fields: Mapping[str, object]) -> None:
        """`what` completes "cannot …"; `fields` say whose calls they are."""
        self._log = log
        self._what = what
        self._fields = fields
        self._reason = ""
        self._failed = 0
        self._since = 0.0
        self._said_at = -math.inf

    def told(self, error: ProviderError | None, now: float) -> None:
        """A call has ended, at `now` (seconds of a monotonic clock); `error` is None if it has worked."""
        if error is None:
            if self._failed:
                lasted = {"failures": self._failed, "seconds": round(now - self._since)}
                self._log.warning(f"can {self._what} again", extra={"fields": {**self._fields, **lasted}})
            self._failed = 0
            self._reason = ""
            return
        if not self._failed:
            self._since = now
        self._failed += 1
        # The words may have a request's id in them; what clients are told is the same as long as the reason is.
        reason = f"{type(error).__name__} {error.peer_hint}"
        if reason != self._reason or now - self._said_at >= REMINDER_S:
            self._reason, self._said_at = reason, now
            level = logging.WARNING if error.retryable else logging.ERROR
            fields = {**self._fields, "error": str(error), "failures": self._failed}
            self._log.log(level, f"cannot {self._what}", extra={"fields": fields})
