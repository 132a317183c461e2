"""The contract of the machines' identities: which machine of a satellite is the right one, and which key it has.

One row for each satellite, which every host reads again and again. `daemon/pki/rules.py` decides how a row may change.
`tests/beds/contracts/identities.py` tests these laws:

1. A row has a version. Of all who change the row that they have seen, on any host, one does, and the others are told so.
2. No secret is stored: of a token and of a key, the row has the hash.
3. A row that cannot be read affects its own satellite and no other: none of its machines is accepted.
"""

import dataclasses
import json
import re
from typing import Protocol

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of

HASH_PATTERN = re.compile(r"[0-9a-f]{64}")
"""SHA-256 in hex. A launch token has the same form."""
MAX_TOKENS = 4
"""Hashes of bootstrap tokens that are kept of one launch: hosts with different authorities hand out different tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExpectedMachine:
    """A machine that was launched, or is about to be. It may enrol with one of the tokens, once."""

    launch: str
    """The token of its launch."""
    generation: int
    """As in the registry: a later machine has a higher one."""
    token_hashes: tuple[str, ...]
    until_us: int
    """The tokens count until then. Microseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class EnrolledMachine:
    """The machine that is the satellite's, with its key."""

    launch: str
    generation: int
    key_hash: str
    """Of the public key in its newest certificate."""
    previous_hash: str | None
    """Of the key that asked for the newest certificate; None for the first."""
    at_us: int
    """When it got its newest certificate, in microseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredIdentity:
    """A satellite's row."""

    key: SatelliteKey
    version: int
    """1 for a new row; each change makes it one larger."""
    expected: ExpectedMachine | None = None
    enrolled: EnrolledMachine | None = None


class IdentityStore(Protocol):
    """Every method raises StoreError. Each may be repeated after an answer was lost."""

    async def identities(self) -> tuple[StoredIdentity, ...]:
        """All rows, by key. A row that cannot be read is left out and logged."""
        ...

    async def identity(self, key: SatelliteKey) -> StoredIdentity | None:
        """One row; None if there is none. Raises MalformedRow if it cannot be read."""
        ...

    async def put(self, row: StoredIdentity) -> bool:
        """Store a row in place of the one with the version before it. Returns False if there is another version."""
        ...

    async def aclose(self) -> None:
        """Give up what is held open; nothing may be called afterwards."""
        ...


def columns_of(row: StoredIdentity) -> tuple[str | None, str | None]:
    """`expected` and `enrolled` as JSON."""
    expected, enrolled = (
        None if each is None else json.dumps(dataclasses.asdict(each)) for each in (row.expected, row.enrolled)
    )
    return expected, enrolled


def stored_identity(org: object, name: object, version: object, expected: object, enrolled: object) -> StoredIdentity:
    """Check a row's columns, whatever they hold. Raises MalformedRow."""
    return StoredIdentity(
        SatelliteKey(text_of(org, "org"), text_of(name, "name")),
        whole_of(version, "version"),
        None if expected is None else _expected(_fields(expected, "expected")),
        None if enrolled is None else _enrolled(_fields(enrolled, "enrolled")),
    )


def _fields(column: object, name: str) -> dict[str, object]:
    try:
        found: object = json.loads(text_of(column, name))
    except ValueError as exc:
        raise MalformedRow(f"{name} is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise MalformedRow(f"{name} is not an object in JSON")
    return found


def _expected(fields: dict[str, object]) -> ExpectedMachine:
    hashes = fields.get("token_hashes")
    if not isinstance(hashes, list):
        raise MalformedRow("token_hashes is not a list")
    return ExpectedMachine(
        _hash(fields, "launch"),
        whole_of(fields.get("generation"), "generation"),
        tuple(_hash_of(each, "token_hashes") for each in hashes),
        whole_of(fields.get("until_us"), "until_us"),
    )


def _enrolled(fields: dict[str, object]) -> EnrolledMachine:
    return EnrolledMachine(
        _hash(fields, "launch"),
        whole_of(fields.get("generation"), "generation"),
        _hash(fields, "key_hash"),
        None if fields.get("previous_hash") is None else _hash(fields, "previous_hash"),
        whole_of(fields.get("at_us"), "at_us"),
    )


def _hash(fields: dict[str, object], name: str) -> str:
    return _hash_of(fields.get(name), name)


def _hash_of(value: object, name: str) -> str:
    if not HASH_PATTERN.fullmatch(text_of(value, name)):
        raise MalformedRow(f"{name} is not 64 lower-case hex digits")
    return text_of(value, name)
