"""The atomic steps by which hosts that share a fleet agree: one row for each satellite, and one for each living host.

Each write of a row's owner gives the row a new `version`. So a host never compares another host's clock with its own: if it
has seen the same version for long enough, on its own clock, then the owner is gone. An `incarnation` is one host's life from
its first heartbeat until it is declared dead. A dead incarnation never comes back: the host begins another one.

Every method is one atomic step on one row. It raises StoreError, and then the step may have happened or not; it can be
repeated with the same arguments. A read sees every write that was confirmed before it. `tests/beds/contracts/rows.py` tests
this text.
"""

import dataclasses
from typing import Protocol

from bentpipe.daemon.model import SatelliteKey


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A satellite's row. If nobody has the turn, `owner` and `version` are "" and `closing` is False."""

    owner: str = ""
    """The incarnation that has the turn."""
    version: str = ""
    epoch: int = 0
    """How often the turn was taken."""
    closing: bool = False
    """Whether the owner may put the satellite to sleep, so that nobody may enter."""
    entered: frozenset[str] = frozenset()
    """The incarnations that use the satellite."""


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """Whether the step's condition held, and the row after the step."""

    done: bool
    row: Row


class Rows(Protocol):
    """The atomic steps."""

    async def read(self, key: SatelliteKey) -> Row:
        """The satellite's row; an empty one if there is none."""
        ...

    async def take(self, key: SatelliteKey, *, owner: str, seen: str, version: str) -> Written:
        """If the version is `seen`: `owner` has the turn, with `version` and the next epoch, and the row is not closing."""
        ...

    async def renew(self, key: SatelliteKey, *, seen: str, version: str) -> Written:
        """If the version is `seen`: it becomes `version`."""
        ...

    async def close(self, key: SatelliteKey, *, seen: str, version: str, incarnation: str) -> Written:
        """If the version is `seen` and at most `incarnation` has entered: it becomes `version`, closing, entered by none."""
        ...

    async def release(self, key: SatelliteKey, *, seen: str) -> Written:
        """If the version is `seen`: nobody has the turn, and the row is not closing."""
        ...

    async def enter(self, key: SatelliteKey, incarnation: str) -> Written:
        """If the row is not closing: `incarnation` has entered."""
        ...

    async def leave(self, key: SatelliteKey, incarnations: frozenset[str]) -> None:
        """None of these has entered."""
        ...

    async def begin_incarnation(self, incarnation: str, version: str) -> None:
        """Make the incarnation's row, with this version."""
        ...

    async def beat(self, incarnation: str, version: str) -> bool:
        """Give the incarnation's row a new version. Returns False if it has no row: it was declared dead."""
        ...

    async def incarnations(self) -> dict[str, str]:
        """The version of every incarnation that has a row."""
        ...

    async def expire(self, incarnation: str, seen: str) -> bool:
        """Declare it dead if its version is still `seen`. Returns whether it has no row now."""
        ...
