"""How places and bytes are shared among principals, so that none is refused for what another does. Pure bookkeeping.

There are two rules, since some things can be taken back and others cannot:

- `Reserve` is for connections. A running build is never cut for another principal. So a part of the places is set aside
  beforehand, in equal shares for all known principals. Below its share a principal is always let in. Beyond it, the
  principal takes places from the common rest. The less is left of that, the fewer it may take (Choudhury and Hahne's dynamic
  threshold, 1998), so that one principal alone never has all of it.
- `Loan` is for held clients and for the bytes that they have sent. A principal may have everything while nobody else wants
  it. The fair share is everything, divided by the number of principals that have something. If a principal has less than
  that, it gets more though nothing is left: the principal that has the most then loses its newest item.

By either rule, a principal that has no more than `limit // principals` is never refused and loses nothing. If there are
more principals than places, each may have one.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

RESERVED_PART = 8
"""One part in this many of all places is set aside, in equal shares."""
THRESHOLD = 7
"""A principal may take up to this many times the common places that it leaves free. So one alone gets 7/8 of them."""


class Reserve:
    """Places that cannot be taken back."""

    def __init__(self, limit: int, cap: int | None = None) -> None:
        """`limit` is for all principals together, `cap` for each of them."""
        self._limit = limit
        self._cap = cap
        self._held: collections.Counter[str] = collections.Counter()
        self._principals = 1
        self._share = limit
        self._borrowed = 0
        self.total = 0
        """Places taken."""

    @property
    def share(self) -> int:
        """How many places each principal is sure to get."""
        return self._share

    def held(self, principal: str) -> int:
        """How many places a principal has."""
        return self._held[principal]

    def know(self, principals: int) -> None:
        """Note the number of principals.

        If a token is added while all places are taken, its share comes on top of the limit.
        """
        principals = max(principals, len(self._held), 1)
        if principals != self._principals:
            self._principals = principals
            self._divide()

    def resize(self, limit: int, cap: int | None) -> None:
        """There are more or fewer places from now on. Nobody loses a place that it has."""
        self._limit, self._cap = limit, cap
        self._divide()

    def _divide(self) -> None:
        principals = self._principals
        self._share = self._limit if principals == 1 else max(1, self._limit // RESERVED_PART // principals)
        self._borrowed = sum(max(0, count - self._share) for count in self._held.values())

    def refusal(self, principal: str) -> str | None:
        """Why the principal cannot have one more; None if it can."""
        held = self._held[principal]
        if self._cap is not None and held >= self._cap:
            return f"{held} of them are this principal's"
        if held < self._share:
            return None
        left = self._limit - self._principals * self._share - self._borrowed - 1
        if left < 0:
            return f"{held} of them are this principal's, and the rest is taken"
        if self._principals > 1 and held - self._share + 1 > THRESHOLD * left:
            return f"{held} of them are this principal's, and the rest is kept for others"
        return None

    def take(self, principal: str) -> None:
        """Count one more. `refusal` must have returned None."""
        self._borrowed += self._held[principal] >= self._share
        self._held[principal] += 1
        self.total += 1

    def give_back(self, principal: str) -> None:
        """Count one less."""
        self.total -= 1
        self._held[principal] -= 1
        self._borrowed -= self._held[principal] >= self._share
        if not self._held[principal]:
            del self._held[principal]


Item = TypeVar("Item", bound=Hashable)


@dataclasses.dataclass(slots=True)
class _Debtor(Generic[Item]):
    items: dict[Item, int] = dataclasses.field(default_factory=dict)
    amount: int = 0


class Loan(Generic[Item]):
    """Amounts that can be taken back: one for each item (a client), and each item belongs to a principal."""

    def __init__(self, limit: int | None, cap: int | None = None) -> None:
        """`limit` is for all principals together, `cap` for each of them; None means no limit."""
        self._limit = limit
        self._cap = cap
        self._debtors: dict[str, _Debtor[Item]] = {}
        self._total = 0

    def resize(self, limit: int | None, cap: int | None = None) -> None:
        """There is more or less from now on. Nobody loses what it has, but `excess` may name it later."""
        self._limit, self._cap = limit, cap

    @property
    def total(self) -> int:
        """All amounts together."""
        return self._total

    def held(self, principal: str) -> int:
        """A principal's amounts together."""
        debtor = self._debtors.get(principal)
        return 0 if debtor is None else debtor.amount

    def over_cap(self, principal: str, more: int) -> bool:
        """Whether this much more would exceed the principal's own limit."""
        return self._cap is not None and self.held(principal) + more > self._cap

    def refusal(self, principal: str, more: int) -> str | None:
        """Why the principal cannot have this much more; None if it can, perhaps after `excess` is let go."""
        held = self.held(principal)
        if self.over_cap(principal, more):
            return f"{held} of {self._cap} are this principal's"
        if self._limit is None or self._total + more <= self._limit or held + more <= self._fair(principal):
            return None
        return f"{held} of {self._limit} are this principal's, and the rest is in use"

    def _fair(self, principal: str) -> int:
        there = len(self._debtors) + (principal not in self._debtors)
        return max(1, (self._limit or 0) // there)

    def excess(self, more: int, keep: str, may_go: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """The item to let go before `keep` takes `more`; None if everything fits, or if no principal has too much.

        It is an item of the principal that has the most, if that is more than its fair share: the newest of those items that
        are at least as large as their average.
        """
        if self._limit is None or self._total + more <= self._limit:
            return None
        greediest = max(self._debtors, key=self.held, default=None)
        if greediest is None or greediest == keep or self.held(greediest) <= self._fair(keep):
            return None
        debtor = self._debtors[greediest]
        there = reversed(debtor.items.items())
        return next((item for item, size in there if size * len(debtor.items) >= debtor.amount and may_go(item)), None)

    def change(self, principal: str, item: Item, amount: int) -> None:
        """Set an item's amount; with 0 the item is forgotten."""
        debtor = self._debtors.get(principal)
        if debtor is None:
            if not amount:
                return
            debtor = self._debtors[principal] = _Debtor()
        difference = amount - debtor.items.get(item, 0)
        debtor.amount += difference
        self._total += difference
        if amount:
            debtor.items[item] = amount
        else:
            debtor.items.pop(item, None)
            if not debtor.items:
                del self._debtors[principal]
