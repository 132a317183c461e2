"""How many clients may be held, for each satellite and in all, and which of them is let go if there are too many. Pure.

The places are lent (`daemon/shares.py`). One principal may hold them all while no other comes. A principal with less than a
fair share always gets a place. For it the newest client of the principal that holds the most is let go, and told why.
"""

import collections
from collections.abc import Callable

from bentpipe.daemon.errors import LimitReached
from bentpipe.daemon.shares import Loan

GAVE_WAY = "its place was needed: this principal holds more of {limit} than its fair share, and others came"


class HeldSlot:
    """A held client's place."""

    def __init__(
        self, loans: tuple["Loan[HeldSlot]", ...], principal: str, let_go: Callable[[LimitReached], None]
    ) -> None:
        self._loans = loans
        self._principal = principal
        self.let_go = let_go
        """End the client's wait with this error. The place has been given back already."""
        for loan in loans:
            loan.change(principal, self, 1)

    def release(self) -> None:
        """Give it back; idempotent."""
        for loan in self._loans:
            loan.change(self._principal, self, 0)
        self._loans = ()


class Crowd:
    """All clients that are held."""

    def __init__(self, limit: int | None = None, per_principal: int | None = None) -> None:
        self.loan: Loan[HeldSlot] = Loan(limit, per_principal)
        self.reached: collections.Counter[str] = collections.Counter()
        """How often each limit was reached, by its name: a client was refused or let go."""

    def resize(self, limit: int | None, per_principal: int | None) -> None:
        """Other limits hold for clients that come from now on."""
        self.loan.resize(limit, per_principal)

    @property
    def held(self) -> int:
        """How many clients are held."""
        return self.loan.total


class WaitingLine:
    """The number for one satellite."""

    def __init__(self, crowd: Crowd, limit: int) -> None:
        self._crowd = crowd
        self._loan: Loan[HeldSlot] = Loan(limit)

    def resize(self, limit: int) -> None:
        """Another limit holds for clients that come from now on."""
        self._loan.resize(limit)

    def refusal(self, principal: str) -> str | None:
        """Why the principal cannot have one more client held; None if it can."""
        if (words := self._loan.refusal(principal, 1)) is not None:
            return f"limits.max_held_per_satellite is reached: of the clients held for this satellite {words}"
        if (words := self._crowd.loan.refusal(principal, 1)) is not None:
            limit = "max_held_per_principal" if self._crowd.loan.over_cap(principal, 1) else "max_held"
            return f"limits.{limit} is reached: of the clients held {words}"
        return None

    def take(self, principal: str, let_go: Callable[[LimitReached], None]) -> HeldSlot:
        """Hold one more client. `refusal` must have returned None. Others may be let go for it."""
        for loan, limit in ((self._loan, "max_held_per_satellite"), (self._crowd.loan, "max_held")):
            while (found := loan.excess(1, principal)) is not None:
                found.release()
                self._crowd.reached[limit] += 1
                found.let_go(LimitReached(GAVE_WAY.format(limit=f"limits.{limit}")))
        return HeldSlot((self._loan, self._crowd.loan), principal, let_go)

    def refused(self, words: str) -> None:
        """Count a refusal, by the limit that its message names."""
        self._crowd.reached[words.removeprefix("limits.").partition(" ")[0]] += 1
