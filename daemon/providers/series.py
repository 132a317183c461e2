"""Logs a series of failures once: its beginning, every change of its reason, a reminder now and then, and its end.

A call that fails a thousand times for one reason is one problem. The log has the provider's own message, which clients never
get.
"""

import logging
import math
from collections.abc import Mapping

from bentpipe.daemon.errors import ProviderError

REMINDER_S = 600.0
"""Time between lines about the same problem: the log's last hour shows the problem, and other lines too."""


class Series:
    """The calls of one kind, of which some fail."""

    def __init__(self, log: logging.Logger, what: str, fields: Mapping[str, object]) -> None:
        """`what` completes "cannot …"; `fields` identify the caller in the log."""
        self._log = log
        self._what = what
        self._fields = fields
        self._reason = ""
        self._failed = 0
        self._since = 0.0
        self._said_at = -math.inf

    def told(self, error: ProviderError | None, now: float) -> None:
        """Note that a call has ended, at `now` (seconds of a monotonic clock); `error` is None if it has worked."""
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
        # The message may have a request's id in it. The hint for clients stays the same while the reason does.
        reason = f"{type(error).__name__} {error.peer_hint}"
        if reason != self._reason or now - self._said_at >= REMINDER_S:
            self._reason, self._said_at = reason, now
            level = logging.WARNING if error.retryable else logging.ERROR
            fields = {**self._fields, "error": str(error), "failures": self._failed}
            self._log.log(level, f"cannot {self._what}", extra={"fields": fields})
