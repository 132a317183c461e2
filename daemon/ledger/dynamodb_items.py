"""What the ledger's items hold: a host's record, its open intervals, and its past ones. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from bentpipe.daemon.ids import open_interval_key
from bentpipe.daemon.ledger.contract import Interval, Stamp
from bentpipe.daemon.ledger.facts import FACTS, read_facts, write_facts
from bentpipe.daemon.model import SatelliteKey, SatelliteState, StateFacts
from bentpipe.daemon.store.dynamodb_table import given, given_number, key_of, number, text
from bentpipe.daemon.store.malformed import MalformedRows

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
class HostRecord:
    """A host's item beside its intervals: which run may write, its last transition, and its last heartbeat."""

    run: str
    serial: int
    heartbeat: Stamp
    ended: int
    """How many intervals have ended; numbers them in their order."""
    pulled: int = 0
    """How often the wall clock has stepped back, so that past intervals have changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenInterval:
    """A satellite's open interval."""

    key: SatelliteKey
    state: SatelliteState
    began: Stamp
    cause: str
    who: str
    number: int
    """How many intervals had ended when this one began."""


def host_pk(host: str) -> str:
    """Partition of a host's intervals."""
    return f"BOOKS#{host}"


def past_key(to_us: int, number: int) -> str:
    """Sort key of a past interval: by its end, shifted so that no moment is negative, then by its number."""
    return f"{PAST}{to_us + (1 << 62):020d}#{number:012d}"


def host_item(host: str, record: HostRecord) -> dict[str, AttributeValueTypeDef]:
    """A host's record."""
    return {
        "pk": {"S": LIFE},
        "sk": {"S": host},
        "run": {"S": record.run},
        "serial": {"N": str(record.serial)},
        "moves": {"N": str(record.ended)},
        "pulled": {"N": str(record.pulled)},
        **_stamp_item(record.heartbeat),
    }


def host_of(item: Item) -> HostRecord:
    """Reverse of `host_item`. A number or moment that cannot be read counts as 0: which run may write still holds."""
    malformed = MalformedRows("ledger")

    def read(parse: Callable[[Item], T], otherwise: T) -> T:
        return next(iter(malformed.read([item], key_of, parse)), otherwise)

    return HostRecord(
        text(item, "run"),
        read(lambda item: given_number(item, "serial"), 0),
        read(_stamp_of, Stamp(0, 0, "")),
        read(lambda item: given_number(item, "moves"), 0),
        read(lambda item: number(item, "pulled"), 0),
    )


def open_item(host: str, each: OpenInterval) -> dict[str, AttributeValueTypeDef]:
    """A satellite's open interval."""
    return {
        "pk": {"S": host_pk(host)},
        "sk": {"S": open_interval_key(each.key)},
        **_common_item(each),
        **_stamp_item(each.began),
        "number": {"N": str(each.number)},
    }


def open_of(item: Item) -> OpenInterval:
    """Reverse of `open_item`. Raises MalformedRow, ValueError."""
    return OpenInterval(
        *(_key_of(item), SatelliteState(text(item, "satellite_state")), _stamp_of(item)),
        *(text(item, "cause"), text(item, "who"), given_number(item, "number")),
    )


def past_item(
    host: str, each: OpenInterval, to_us: int, elapsed_us: int, number: int, facts: StateFacts
) -> dict[str, AttributeValueTypeDef]:
    """The interval `each`, which ends now as number `number`."""
    written = write_facts(facts)
    return {
        "pk": {"S": host_pk(host)},
        "sk": {"S": past_key(to_us, number)},
        **_common_item(each),
        "from_us": {"N": str(each.began.wall_us)},
        "to_us": {"N": str(to_us)},
        "elapsed_us": {"N": str(elapsed_us)},
        "number": {"N": str(number)},
        **{name: {"S": value if isinstance(value, str) else json.dumps(value)} for name, value in written.items()},
    }


def interval_of(item: Item) -> Interval:
    """Reverse of `past_item`. Raises MalformedRow, ValueError."""
    present = {fact: given(item, fact.name) for fact in FACTS if fact.name in item}
    return Interval(
        _key_of(item),
        SatelliteState(text(item, "satellite_state")),
        *(given_number(item, "from_us"), given_number(item, "to_us"), given_number(item, "elapsed_us")),
        *(text(item, "cause"), text(item, "who")),
        is_open=False,
        facts=read_facts({fact.name: found if fact.is_text else json.loads(found) for fact, found in present.items()}),
    )


def _common_item(each: OpenInterval) -> dict[str, AttributeValueTypeDef]:
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
