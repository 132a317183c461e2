"""What hosts that share a fleet agree by: one row a satellite and one a host, and the few atomic steps on them.

A row's `version` is new with every write of its owner, so that nobody ever compares two hosts' clocks: who has seen the
same version for long enough on its own clock knows that the owner is gone. A `stay` is one host's life between two
lapses: once declared dead it never comes back, the host begins another.

Every method is one atomic step on one row, and raises StoreError, after which it may have happened or not. A step that
is repeated with the same arguments does no harm. Reads see every write that was confirmed before.
`tests/beds/contracts/rows.py` is this text as tests.
"""

import dataclasses
from typing import Protocol

from bentpipe.daemon.model import SatelliteKey


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A satellite's row. Without an owner `owner` and `version` are "" and `closing` is False."""

    owner: str = ""
    version: str = ""
    epoch: int = 0
    """How often it was taken."""
    closing: bool = False
    stays: frozenset[str] = frozenset()
    """Who has it in use."""


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """Whether the step's condition held, and the row after it."""

    done: bool
    row: Row


class Rows(Protocol):
    """The atomic steps."""

    async def read(self, key: SatelliteKey) -> Row:
        """The row; an empty one if there is none."""
        ...

    async def take(self, key: SatelliteKey, *, owner: str, seen: str, version: str) -> Written:
        """If the version is `seen`: make `owner` the owner, with `version`, the next epoch, and not closing."""
        ...

    async def renew(self, key: SatelliteKey, *, seen: str, version: str) -> Written:
        """If the version is `seen`: make it `version`."""
        ...

    async def close(self, key: SatelliteKey, *, seen: str, version: str, stay: str) -> Written:
        """If the version is `seen` and no stay but `stay` is entered: make it `version`, closing, and entered by none."""
        ...

    async def release(self, key: SatelliteKey, *, seen: str) -> Written:
        """If the version is `seen`: have no owner, and be open."""
        ...

    async def enter(self, key: SatelliteKey, stay: str) -> Written:
        """If it is not closing: `stay` is entered."""
        ...

    async def leave(self, key: SatelliteKey, stays: frozenset[str]) -> None:
        """These are not entered."""
        ...

    async def begin_stay(self, stay: str, version: str) -> None:
        """Make the stay's row."""
        ...

    async def beat(self, stay: str, version: str) -> bool:
        """Give the stay's row a new version. Returns False if there is none (any more)."""
        ...

    async def stays(self) -> dict[str, str]:
        """The version of every stay."""
        ...

    async def bury(self, stay: str, seen: str) -> bool:
        """If the stay's version is `seen`, or it has no row: it has none from now on. Returns whether that is so."""
        ...
