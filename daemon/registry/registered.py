"""The contract of the satellites that have registered themselves: machines that bentpipe neither starts nor stops.

Every host reads them again and again, and serves them beside all others. The store holds hashes of registration tokens,
never a token. `tests/beds/contracts/registered.py` tests these laws:

1. A name stands for one satellite, launched or registered. An address stands for one registered satellite.
2. If a name or an address is taken, a newcomer gets it only if it proves itself (by the token, or for a name by the same
   address), or if the satellite that has it is offline. Of all that register at once, on any host, one succeeds.
3. An org never has more satellites than the limit that each of the callers names.
4. A heartbeat counts for the registration whose token it shows. After another one has taken the name, it counts for none.
5. A row that cannot be read affects its own satellite and no other.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.registry.contract import StoreConflict
from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of

PORTS = range(1, 65_536)


class RegisteredElsewhere(StoreConflict):
    """The satellite is registered at another address, from where its heartbeats come."""

    def __init__(self, key: SatelliteKey) -> None:
        super().__init__(f"{key} is registered already, and its heartbeats come from another address")


class AddressTaken(StoreConflict):
    """Another registered satellite has the address, and its heartbeats come."""

    def __init__(self, address: Address) -> None:
        super().__init__(f"another satellite is registered at {address}")


class NameTaken(StoreConflict):
    """A satellite of the other kind has the name."""

    def __init__(self, key: SatelliteKey) -> None:
        super().__init__(f"there is another satellite {key} already")


class RegistrationsFull(StoreConflict):
    """The org has as many registered satellites as it may have."""

    def __init__(self, org: str, most: int) -> None:
        super().__init__(f"org {org} has {most} registered satellites, which is its limit")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class RegisteredSatellite:
    """A satellite, and where it is."""

    key: SatelliteKey
    address: Address
    platform: str
    version: str
    """Of the software on the satellite, as it says."""
    root_ca: str
    """PEM: who signs the certificate that the satellite shows. Empty: it speaks plaintext."""
    principal: str
    """Who registered it."""
    token_hash: str
    """SHA-256 of the registration token, in hexadecimal digits."""
    created_us: int
    """Microseconds since the epoch; with the key it tells a satellite from a later one of the same name."""
    beat_us: int
    """The last heartbeat, by the clock of the host that got it. Other hosts notice that it changes."""


def registered_satellite(row: Mapping[str, object]) -> RegisteredSatellite:
    """Check a satellite's columns, by name, whatever they hold. Raises MalformedRow."""

    def text(column: str) -> str:
        return text_of(row.get(column), column)

    def whole(column: str) -> int:
        return whole_of(row.get(column), column)

    for column in ("org", "name"):
        if not re.match(NAME_PATTERN, text(column)):
            raise MalformedRow(f"{column} is not a valid name")
    if whole("port") not in PORTS:
        raise MalformedRow("port is not a valid port")
    return RegisteredSatellite(
        key=SatelliteKey(text("org"), text("name")),
        address=Address(text("host"), whole("port")),
        platform=text("platform"),
        version=text("version"),
        root_ca=text("root_ca"),
        principal=text("principal"),
        token_hash=text("token_hash"),
        created_us=whole("created_us"),
        beat_us=whole("beat_us"),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class RegistrationWish:
    """A wish to register `satellite`."""

    satellite: RegisteredSatellite
    shown_hash: str
    """Of the registration token that the caller has shown; empty if it has shown none."""
    offline_before_us: int
    """Satellites whose last heartbeat was before that are offline."""
    most: int
    """Satellites that the org may have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Placing:
    """What a registration changes: the row to write, and the row that gives way to it."""

    satellite: RegisteredSatellite
    evicted: RegisteredSatellite | None
    """Another satellite, offline, that had the address."""


def place(rows: Iterable[RegisteredSatellite], wish: RegistrationWish) -> Placing:
    """Decide a registration by all rows that there are. Pure, so that every store decides alike.

    A satellite that registers again stays the same one. Raises RegisteredElsewhere, AddressTaken, RegistrationsFull.
    """
    rows = list(rows)
    new = wish.satellite
    before = next((each for each in rows if each.key == new.key), None)
    if before is not None and not _gives_way(before, wish):
        raise RegisteredElsewhere(new.key)
    rival = next((each for each in rows if each.address == new.address and each.key != new.key), None)
    if rival is not None and rival.beat_us >= wish.offline_before_us:
        raise AddressTaken(new.address)
    others = sum(each.key.org == new.key.org for each in rows if each not in (before, rival))
    if others >= wish.most:
        raise RegistrationsFull(new.key.org, wish.most)
    placed = new if before is None else dataclasses.replace(new, created_us=before.created_us)
    return Placing(placed, rival)


def _gives_way(before: RegisteredSatellite, wish: RegistrationWish) -> bool:
    proved = wish.shown_hash == before.token_hash or before.address == wish.satellite.address
    return proved or before.beat_us < wish.offline_before_us


class RegisteredStore(Protocol):
    """Every method raises StoreError. Each may be repeated after an answer was lost."""

    async def satellites(self) -> tuple[RegisteredSatellite, ...]:
        """All satellites, by key. A row that cannot be read is left out and logged."""
        ...

    async def register(self, wish: RegistrationWish) -> RegisteredSatellite:
        """Write the satellite, or the changes of it. Returns it as it is then. Raises NameTaken, and as `place`."""
        ...

    async def beat(self, satellite: RegisteredSatellite, beat_us: int) -> bool:
        """Note a heartbeat. Returns whether the registration is still there."""
        ...

    async def remove(self, satellite: RegisteredSatellite) -> None:
        """Delete it. Does nothing if it is gone, or was registered again with another token."""
        ...

    async def aclose(self) -> None:
        """Give up what is held open; nothing may be called afterwards."""
        ...
