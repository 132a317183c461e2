"""What the ledger's items hold: the host's life, its open intervals, and those that are past. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bentpipe.daemon.ids import open_interval_key
from bentpipe.daemon.ledger.contract import Change, Interval, Stamp, phases_of
from bentpipe.daemon.model import NO_WAITS, Resume, SatelliteKey, SatelliteState, Waits
from bentpipe.daemon.store.dynamodb_table import given, given_number, key_of, text
from bentpipe.daemon.store.malformed import MalformedRow, MalformedRows, number_of, whole_of

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from bentpipe.daemon.store.dynamodb_table import Item

T = TypeVar("T")

LIFE = "LIFE"
OPEN = "OPEN#"
PAST = "PAST#"
OPEN_END, PAST_END = "OPEN$", "PAST$"
"""The character after "#" is "$": where the sort keys with the prefix end."""


@dataclasses.dataclass(slots=True)
class Life:
    """The host's last sign of life, as it is or is to be in the table. `moves` counts intervals that ended."""

    run: str
    serial: int
    stamp: Stamp
    moves: int


@dataclasses.dataclass(frozen=True, slots=True)
class Open:
    """A satellite's open interval; `since` is the number of the move that began it."""

    key: SatelliteKey
    state: SatelliteState
    began: Stamp
    cause: str
    who: str
    since: int


def books_pk(host: str) -> str:
    """Partition of a host's intervals."""
    return f"BOOKS#{host}"


def past_key(to_us: int, moves: int) -> str:
    """Sort key of a past interval: by its end, shifted so that no moment is negative, then by the number of its end."""
    return f"{PAST}{to_us + (1 << 62):020d}#{moves:012d}"


def life_item(host: str, life: Life) -> dict[str, AttributeValueTypeDef]:
    """A host's life."""
    return {
        "pk": {"S": LIFE},
        "sk": {"S": host},
        "run": {"S": life.run},
        "serial": {"N": str(life.serial)},
        "moves": {"N": str(life.moves)},
        **_stamp_item(life.stamp),
    }


def life_of(item: Item) -> Life:
    """Read what `life_item` made. What cannot be read counts as nothing: whose books they are still holds."""
    malformed = MalformedRows("ledger")

    def read(parse: Callable[[Item], T], otherwise: T) -> T:
        return next(iter(malformed.read([item], key_of, parse)), otherwise)

    return Life(
        text(item, "run"),
        read(lambda item: given_number(item, "serial"), 0),
        read(_stamp_of, Stamp(0, 0, "")),
        read(lambda item: given_number(item, "moves"), 0),
    )


def open_item(host: str, each: Open) -> dict[str, AttributeValueTypeDef]:
    """A satellite's open interval."""
    return {
        "pk": {"S": books_pk(host)},
        "sk": {"S": open_interval_key(each.key)},
        **_common_item(each),
        **_stamp_item(each.began),
        "number": {"N": str(each.since)},
    }


def open_of(item: Item) -> Open:
    """Read what `open_item` made."""
    return Open(
        *(_key_of(item), SatelliteState(text(item, "satellite_state")), _stamp_of(item)),
        *(text(item, "cause"), text(item, "who"), given_number(item, "number")),
    )


def past_item(
    host: str, each: Open, to_us: int, elapsed_us: int, moves: int, change: Change | None
) -> dict[str, AttributeValueTypeDef]:
    """The interval `each`, which ends now, and what `change` says of it."""
    phases = {phase.value: round(seconds, 6) for phase, seconds in change.phases} if change else {}
    waits = change.waits if change else NO_WAITS
    resume = change.resume if change else Resume.UNKNOWN
    return {
        "pk": {"S": books_pk(host)},
        "sk": {"S": past_key(to_us, moves)},
        **_common_item(each),
        "from_us": {"N": str(each.began.wall_us)},
        "to_us": {"N": str(to_us)},
        "elapsed_us": {"N": str(elapsed_us)},
        "number": {"N": str(moves)},
        "phases": {"S": json.dumps(phases)},
        "waits": {"S": json.dumps([waits.clients, waits.total_s, waits.longest_s])},
        "resume": {"S": resume.value},
    }


def interval_of(item: Item) -> Interval:
    """Read what `past_item` made."""
    return Interval(
        _key_of(item),
        SatelliteState(text(item, "satellite_state")),
        *(given_number(item, "from_us"), given_number(item, "to_us"), given_number(item, "elapsed_us")),
        *(text(item, "cause"), text(item, "who")),
        phases_of(json.loads(given(item, "phases"))),
        _waits_of(json.loads(given(item, "waits"))),
        is_open=False,
        resume=Resume(text(item, "resume")),
    )


def _common_item(each: Open) -> dict[str, AttributeValueTypeDef]:
    return {
        "satellite": {"S": str(each.key)},
        "satellite_state": {"S": each.state.value},
        "cause": {"S": each.cause},
        "who": {"S": each.who},
    }


def _key_of(item: Item) -> SatelliteKey:
    org, _, name = given(item, "satellite").partition("/")
    return SatelliteKey(org, name)


def _stamp_item(stamp: Stamp) -> dict[str, AttributeValueTypeDef]:
    return {
        "wall_us": {"N": str(stamp.wall_us)},
        "boot_us": {"N": str(stamp.boot_us)},
        "boot_id": {"S": stamp.boot_id},
    }


def _stamp_of(item: Item) -> Stamp:
    return Stamp(given_number(item, "wall_us"), given_number(item, "boot_us"), given(item, "boot_id"))


def _waits_of(found: object) -> Waits:
    if not isinstance(found, list) or len(found) != len(dataclasses.fields(Waits)):
        raise MalformedRow(f"waits are none: {found!r}")
    clients, total_s, longest_s = found
    return Waits(whole_of(clients, "waits"), number_of(total_s, "waits"), number_of(longest_s, "waits"))
