"""The contract of what the hosts of a fleet know about accounts beside tokens: orgs, public keys, revocations, used ids.

A second registry with its own laws, which `tests/beds/contracts/accounts.py` tests:

1. An org has one row. A revoked org keeps its row, so that every host refuses what still names it.
2. A public key is known by the digest of the key itself: no row can pass one key off as another.
3. A revocation stays until what it revokes has ended by itself.
4. Of all who use an id at once, on any host, exactly one is told that it was the first.
5. A row that cannot be read affects nothing but itself: such an org or key gives no rights. A revocation that cannot be
   read is told in the log, as every such row is.
"""

import dataclasses
import hashlib
import re
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of

KEY_ID_CHARS = 32
"""Hex digits of a key id: half of a SHA-256."""
SUBJECT_PATTERN = re.compile(r"^(rule|exchange):[A-Za-z0-9._-]{1,64}$")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StoredOrg:
    """An org that `bentpipe org` has made or revoked. Times are microseconds since the epoch."""

    name: str
    created_us: int
    revoked_us: int | None = None
    """None if it is not revoked."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StoredKey:
    """The public half of a key that a host signs sessions with."""

    key_id: str
    """See `key_id_of`."""
    public_pem: str
    """SubjectPublicKeyInfo in PEM, on P-256."""
    until_us: int
    """After this time nothing that it has signed is valid. Microseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StoredRevocation:
    """A rule for CI jobs, or a single exchange by one, that is revoked. Times are microseconds since the epoch."""

    subject: str
    """`rule:NAME` or `exchange:ID`."""
    at_us: int
    """What was exchanged up to this time is refused."""
    until_us: int | None
    """None: the rule gives nothing until it is allowed again. Else: after this time the row may be deleted."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredAccounts:
    """Everything that hosts read again and again."""

    orgs: tuple[StoredOrg, ...] = ()
    keys: tuple[StoredKey, ...] = ()
    revocations: tuple[StoredRevocation, ...] = ()


def key_id_of(public: ec.EllipticCurvePublicKey) -> str:
    """The id of a public key: half of the SHA-256 of its SubjectPublicKeyInfo in DER, in hex."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:KEY_ID_CHARS]


def public_key_of(public_pem: str) -> ec.EllipticCurvePublicKey:
    """Read a public key. Raises ValueError unless it is an EC key on P-256."""
    try:
        key = serialization.load_pem_public_key(public_pem.encode())
    except UnsupportedAlgorithm as exc:
        raise ValueError(str(exc)) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("it is not an EC key on P-256")
    return key


def stored_org(name: object, created_us: object, revoked_us: object) -> StoredOrg:
    """Read an org's columns, whatever is in them. Raises MalformedRow."""
    if not re.match(NAME_PATTERN, text_of(name, "name")):
        raise MalformedRow("name is not a valid name")
    return StoredOrg(
        text_of(name, "name"),
        whole_of(created_us, "created_us"),
        None if revoked_us is None else whole_of(revoked_us, "revoked_us"),
    )


def stored_key(key_id: object, public_pem: object, until_us: object) -> StoredKey:
    """Read a key's columns, whatever is in them. Raises MalformedRow."""
    found = StoredKey(text_of(key_id, "key_id"), text_of(public_pem, "public_pem"), whole_of(until_us, "until_us"))
    try:
        public = public_key_of(found.public_pem)
    except ValueError as exc:
        raise MalformedRow(f"public_pem: {exc}") from exc
    if key_id_of(public) != found.key_id:
        raise MalformedRow("key_id is not the digest of public_pem")
    return found


def stored_revocation(subject: object, at_us: object, until_us: object) -> StoredRevocation:
    """Read a revocation's columns, whatever is in them. Raises MalformedRow."""
    if not SUBJECT_PATTERN.match(text_of(subject, "subject")):
        raise MalformedRow("subject is not rule:NAME or exchange:ID")
    return StoredRevocation(
        text_of(subject, "subject"),
        whole_of(at_us, "at_us"),
        None if until_us is None else whole_of(until_us, "until_us"),
    )


class AccountStore(Protocol):
    """Every method raises StoreError. Each may be repeated after an answer was lost."""

    async def accounts(self) -> StoredAccounts:
        """All rows, in order. A row that cannot be read is left out and told in the log."""
        ...

    async def put_org(self, org: StoredOrg, *, cut_at_us: int | None = None) -> None:
        """Keep an org, in place of an earlier row; in the same step note that its connections are to be cut, if asked."""
        ...

    async def put_key(self, key: StoredKey) -> None:
        """Publish a public key, or prolong its row."""
        ...

    async def put_revocation(self, revocation: StoredRevocation, *, cut_at_us: int | None = None) -> None:
        """Keep a revocation, in place of an earlier one of the same subject. As `put_org` for cuts."""
        ...

    async def use_once(self, used_id: str, *, until_us: int) -> bool:
        """Note that an id is used. Returns False if it was used before; ids are forgotten after `until_us`."""
        ...

    async def forget_ended(self, *, now_us: int) -> None:
        """Delete keys, revocations and used ids whose `until_us` has passed."""
        ...

    async def aclose(self) -> None:
        """Give up what is held open; nothing may be called afterwards."""
        ...
