"""The contract of the reserve: machines that are launched and asleep, and belong to no satellite yet.

Each machine type has numbered places, and a place has one row at most. So there are never more machines than places,
whatever hosts do at once. `daemon/fleet/reserve_rules.py` decides how a row changes. `tests/beds/contracts/reserve.py` tests
these laws:

1. A row has a version. Of all who change or delete the row that they have seen, on any host, one does, and the others are
   told so. So a machine is taken for one satellite at most.
2. A place that was free meanwhile has another machine, with another id. A host that has seen the earlier one changes
   nothing.
3. A row that cannot be read affects its own place and no other. Its id is still told, so that nobody takes its machine for
   one that no host knows.
"""

import dataclasses
import enum
import json
import re
from typing import Protocol

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of

ID_PATTERN = re.compile(r"[0-9a-f]{32}")


class SpareState(enum.Enum):
    """What is known of a machine of the reserve."""

    FILLING = "filling"
    """It is launched, made warm and laid down; or its launch was refused, and is tried again later."""
    READY = "ready"
    """It sleeps, and may be taken."""
    TAKEN = "taken"
    """It is one satellite's, which has not been operational with it yet."""
    DOOMED = "doomed"
    """It is to be destroyed."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class ReservePlace:
    """One place of a machine type's reserve, numbered from 0."""

    size: str
    platform: str
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Taker:
    """For which machine of which satellite it was taken."""

    key: SatelliteKey
    generation: int
    """As in the registry: it counts the satellite's machines."""
    at_us: int
    """Microseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredSpare:
    """A machine of the reserve. `*_us` are microseconds since the epoch."""

    place: ReservePlace
    spare: str
    """Its id: 32 hex digits, in the machine's tag too."""
    version: int
    """1 for a new row; each change makes it one larger."""
    state: SpareState
    digest: str
    """What it was made of: another configuration has another digest."""
    created_us: int
    instance: str = ""
    """The provider's name of the machine, once it was seen; before that it may exist nevertheless."""
    failures: int = 0
    """How many launches in a row were refused."""
    again_us: int = 0
    """No launch before."""
    reason: str = ""
    """Why it is not ready, for the operator."""
    taker: Taker | None = None

    def changed(self, state: SpareState, reason: str = "") -> "StoredSpare":
        """The next version."""
        return dataclasses.replace(self, version=self.version + 1, state=state, reason=reason)


class ReserveStore(Protocol):
    """Every method raises StoreError. Each may be repeated after an answer was lost."""

    async def spares(self) -> tuple[StoredSpare, ...]:
        """All rows, by place. A row that cannot be read is left out and logged."""
        ...

    async def ids(self) -> frozenset[str]:
        """The ids of all rows, whether they can be read or not."""
        ...

    async def put(self, row: StoredSpare) -> bool:
        """Store a row in place of the one with the version before it and the same id. Returns False if that is not there."""
        ...

    async def remove(self, row: StoredSpare) -> bool:
        """Delete the row. Returns False if another version is there."""
        ...

    async def aclose(self) -> None:
        """Give up what is held open; nothing may be called afterwards."""
        ...


def facts_of(row: StoredSpare) -> str:
    """All but the place, the id and the version, as JSON."""
    facts: dict[str, object] = {
        "state": row.state.value,
        "digest": row.digest,
        "created_us": row.created_us,
        "instance": row.instance,
        "failures": row.failures,
        "again_us": row.again_us,
        "reason": row.reason,
    }
    if row.taker is not None:
        key = row.taker.key
        facts["taker"] = {
            "org": key.org,
            "name": key.name,
            "generation": row.taker.generation,
            "at_us": row.taker.at_us,
        }
    return json.dumps(facts)


def stored_spare(
    size: object, platform: object, number: object, spare: object, version: object, facts: object
) -> StoredSpare:
    """Check a row's columns, whatever they hold. Raises MalformedRow."""
    if not re.match(NAME_PATTERN, text_of(size, "size")):
        raise MalformedRow("size is not a valid name")
    if not ID_PATTERN.fullmatch(text_of(spare, "spare")):
        raise MalformedRow("spare is not 32 lower-case hex digits")
    place = ReservePlace(text_of(size, "size"), text_of(platform, "platform"), whole_of(number, "number"))
    found = _object(facts)
    try:
        state = SpareState(found.get("state"))
    except ValueError as exc:
        raise MalformedRow(f"state: {exc}") from exc
    taker = _taker(found.get("taker"))
    if (state is SpareState.TAKEN) > (taker is not None):
        raise MalformedRow("a machine that is taken lacks its taker")
    return StoredSpare(
        place,
        text_of(spare, "spare"),
        whole_of(version, "version"),
        state,
        text_of(found.get("digest"), "digest"),
        whole_of(found.get("created_us"), "created_us"),
        text_of(found.get("instance"), "instance"),
        whole_of(found.get("failures"), "failures"),
        whole_of(found.get("again_us"), "again_us"),
        text_of(found.get("reason"), "reason"),
        taker,
    )


def _object(facts: object) -> dict[str, object]:
    try:
        found: object = json.loads(text_of(facts, "facts"))
    except ValueError as exc:
        raise MalformedRow(f"facts is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise MalformedRow("facts is not an object in JSON")
    return found


def _taker(found: object) -> Taker | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        raise MalformedRow("taker is not an object in JSON")
    for part in ("org", "name"):
        if not re.match(NAME_PATTERN, text_of(found.get(part), part)):
            raise MalformedRow(f"the taker's {part} is not a valid name")
    key = SatelliteKey(text_of(found.get("org"), "org"), text_of(found.get("name"), "name"))
    return Taker(key, whole_of(found.get("generation"), "generation"), whole_of(found.get("at_us"), "at_us"))
