"""Keeps the calls of one API under its rate: a token bucket that serves in order, and pauses after AWS has throttled."""

import trio

from bentpipe.config.rates import RateSection

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""After a throttled call nothing is sent for a second, and twice as long after each further one. The bucket of the whole
account is empty then, and a refused call takes a token that others need. AWS asks for exponential backoff."""


class Limiter:
    """A token bucket. Callers are served in order. A caller that is cancelled takes no token."""

    def __init__(self, rate: RateSection) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._at: float | None = None
        self._paused_until = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._turn = trio.Lock()

    def follow(self, rate: RateSection) -> None:
        """Another rate holds from the next token on."""
        self._missing_s()
        self._rate = rate
        self._tokens = min(rate.burst, self._tokens)

    async def take(self) -> None:
        """Wait for a token and take it."""
        async with self._turn:
            while (wait_s := self._missing_s()) > 0:
                await trio.sleep(wait_s)
            self._tokens -= 1

    def throttled(self) -> None:
        """AWS has refused a call: send nothing for a while."""
        self._paused_until = trio.current_time() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def answered(self) -> None:
        """AWS accepts calls again."""
        self._pause_s = FIRST_PAUSE_S

    def _missing_s(self) -> float:
        """Refill the bucket. Returns how long until there is a token."""
        now = trio.current_time()
        if self._at is not None:
            self._tokens = min(self._rate.burst, self._tokens + (now - self._at) * self._rate.per_s)
        self._at = now
        return max((1 - self._tokens) / self._rate.per_s, self._paused_until - now)
