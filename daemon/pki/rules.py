"""How a satellite's row may change: when a machine is launched, enrols, and gets its next certificate. Pure.

    launch ─▶ expected ─enrol, by a token─▶ enrolled ─renew, by its key─▶ enrolled, with another key

- A token enrols one key. The same key may ask again: its answer may have been lost. Another key is refused, and that is
  reported, since somebody else has read the token. The token is in the machine's user data, which each build step can read.
  But no step runs before its machine has enrolled.
- A machine becomes the satellite's when it enrols, and not when it is launched: until then the machine before it stays.
  After that the machine before it is refused.
- A certificate is renewed for the key that has the newest one. The key before it gets only the same answer again. If it asks
  for another key, a copy of it is in other hands, and that is reported.
"""

import dataclasses
import enum
import hashlib
import hmac

from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.identities import MAX_TOKENS, EnrolledMachine, ExpectedMachine, StoredIdentity


class Denial(enum.Enum):
    """Why a machine gets no certificate. The value is what the operator reads."""

    UNKNOWN = "there is no such satellite, launch or token"
    EXPIRED = "its bootstrap token has ended"
    SECOND = "another key has enrolled with this token before"
    SUPERSEDED = "a later machine has taken its place"
    STALE_KEY = "its key was replaced by another one before"

    @property
    def alarming(self) -> bool:
        """Whether somebody has a secret that is not theirs."""
        return self in (Denial.SECOND, Denial.STALE_KEY)


class Denied(Exception):
    """The machine gets no certificate."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.value)
        self.denial = denial


def token_hash_of(token: str) -> str:
    """A token's SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_enrolled(row: StoredIdentity) -> bool:
    """Whether the machine that was launched last has enrolled."""
    return row.expected is None or (row.enrolled is not None and row.enrolled.launch == row.expected.launch)


def expect(key: SatelliteKey, row: StoredIdentity | None, machine: ExpectedMachine) -> StoredIdentity | None:
    """The row once `machine` may be launched; None if the row says so already, or a later machine is expected."""
    if row is None:
        return StoredIdentity(key, 1, machine)
    expected = row.expected
    if expected is not None and expected.generation > machine.generation:
        return None
    if expected is not None and expected.launch == machine.launch:
        if is_enrolled(row):
            return None
        hashes = (*(each for each in expected.token_hashes if each not in machine.token_hashes), *machine.token_hashes)
        until_us = max(expected.until_us, machine.until_us)
        merged = dataclasses.replace(expected, token_hashes=hashes[-MAX_TOKENS:], until_us=until_us)
        return None if merged == expected else _changed(row, expected=merged)
    return _changed(row, expected=machine)


def prolong(row: StoredIdentity | None, until_us: int) -> StoredIdentity | None:
    """The row once a machine that has not enrolled yet may do so until `until_us`; None if nothing changes.

    A machine that was stopped before it could enrol is started again later, with the same user data.
    """
    if row is None or row.expected is None or row.expected.until_us >= until_us:
        return None
    if is_enrolled(row):
        return None
    return _changed(row, expected=dataclasses.replace(row.expected, until_us=until_us))


def enrol(row: StoredIdentity | None, launch: str, token: str, key_hash: str, now_us: int) -> StoredIdentity | None:
    """The row once the machine has enrolled; None if it has already, with the same key. Raises Denied."""
    if row is None or row.expected is None or row.expected.launch != launch:
        raise Denied(Denial.UNKNOWN)
    expected, enrolled = row.expected, row.enrolled
    given = token_hash_of(token)
    if not any([hmac.compare_digest(given, each) for each in expected.token_hashes]):  # all of them: constant time
        raise Denied(Denial.UNKNOWN)
    if enrolled is not None and enrolled.launch == launch:
        if key_hash not in (enrolled.key_hash, enrolled.previous_hash):
            raise Denied(Denial.SECOND)
        if key_hash != enrolled.key_hash:
            raise Denied(Denial.STALE_KEY)
        return None
    if now_us >= expected.until_us:
        raise Denied(Denial.EXPIRED)
    if enrolled is not None and enrolled.generation > expected.generation:
        raise Denied(Denial.SUPERSEDED)
    return _changed(row, enrolled=EnrolledMachine(launch, expected.generation, key_hash, None, now_us))


def renew(
    row: StoredIdentity | None, launch: str, present_hash: str, next_hash: str, now_us: int
) -> StoredIdentity | None:
    """The row once the machine has another key; None if it has it already. Raises Denied.

    `present_hash` is of the key that has signed the request, `next_hash` of the key in it.
    """
    if row is None or row.enrolled is None:
        raise Denied(Denial.UNKNOWN)
    enrolled = row.enrolled
    if enrolled.launch != launch:
        raise Denied(Denial.SUPERSEDED)
    if present_hash == enrolled.key_hash:
        if next_hash == present_hash:
            return None
        renewed = dataclasses.replace(enrolled, key_hash=next_hash, previous_hash=present_hash, at_us=now_us)
        return _changed(row, enrolled=renewed)
    if present_hash != enrolled.previous_hash:
        # A key that was replaced long ago cannot be told from one that never was the machine's.
        raise Denied(Denial.UNKNOWN)
    if next_hash != enrolled.key_hash:
        raise Denied(Denial.STALE_KEY)
    return None


def _changed(
    row: StoredIdentity, *, expected: ExpectedMachine | None = None, enrolled: EnrolledMachine | None = None
) -> StoredIdentity:
    return StoredIdentity(row.key, row.version + 1, expected or row.expected, enrolled or row.enrolled)
