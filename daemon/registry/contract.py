"""The contract of the registry: what is known of satellites, their owners and tokens, but stands in no configuration.

It holds hashes of tokens, never a token. Its laws, which `tests/daemon/registry/registry_contract.py` has as tests:

1. A name stands for one token and a hash for one name; what is revoked is gone, and its name is free again.
2. A satellite's machine is known by its generation. Who wants the next one names the one it knows: of all who do, one
   makes it, and the others are told which it is. So one launch is one machine, whoever else wants it too.
3. Generations only rise, and one that was forgotten is not used again.
4. A row that cannot be read concerns nobody but its own token or satellite.
"""

import dataclasses
from typing import Protocol

from bentpipe.config.model import TOKEN_HASH_PATTERN, check_grants
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of

CUT_KEPT_S = 86_400.0
"""A daemon that did not see the store for longer does not hear of a cut."""


class StoreConflict(StoreError):
    """What was to be written contradicts what is there: a name that is taken, a generation that is over."""

    retryable = False


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StoredToken:
    """A token's name, its hash (`sha256:` and 64 hex digits) and its grants, in the form of the configuration."""

    name: str
    token_hash: str
    grants: tuple[str, ...]
    created_us: int
    """Microseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StoredCut:
    """A token was revoked, and what was opened by it is to be cut: told by every daemon to itself, once."""

    name: str
    at_us: int
    """Microseconds since the epoch; tells two cuts of one name apart, no clocks are compared by it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """What is kept of one satellite."""

    key: SatelliteKey
    owner: str
    """The principal whose it is; "" if it is the configuration's."""
    generation: int
    """Counts its machines, from 1."""
    machine_id: MachineId | None
    """None until the provider has named the machine of this generation."""
    created_us: int
    """Microseconds since the epoch at which this generation was begun."""


def stored_token(name: object, token_hash: object, grants: object, created_us: object) -> StoredToken:
    """Read a token's columns, whatever is in them. Raises MalformedRow."""
    hashed = text_of(token_hash, "hash")
    if not text_of(name, "name"):
        raise MalformedRow("name is empty")
    if not TOKEN_HASH_PATTERN.fullmatch(hashed):
        raise MalformedRow("hash is not sha256: and 64 lower-case hex digits")
    if not isinstance(grants, (list, tuple)) or not grants:
        raise MalformedRow("grants is no list with a grant in it")
    checked = tuple(text_of(grant, "grants") for grant in grants)
    try:
        check_grants(checked)
    except ValueError as exc:
        raise MalformedRow(str(exc)) from exc
    return StoredToken(text_of(name, "name"), hashed, checked, whole_of(created_us, "created_us"))


def stored_cut(name: object, at_us: object) -> StoredCut:
    """Read a cut's columns, whatever is in them. Raises MalformedRow."""
    return StoredCut(text_of(name, "name"), whole_of(at_us, "at_us"))


def registration_of(
    org: object, name: object, owner: object, generation: object, machine: object, created_us: object
) -> Registration:
    """Read a satellite's columns, whatever is in them. Raises MalformedRow."""
    if whole_of(generation, "generation") < 1:
        raise MalformedRow(f"generation is {generation}, and they begin with 1")
    return Registration(
        SatelliteKey(text_of(org, "org"), text_of(name, "name")),
        text_of(owner, "owner"),
        whole_of(generation, "generation"),
        None if machine is None else MachineId(text_of(machine, "machine")),
        whole_of(created_us, "created_us"),
    )


class Registry(Protocol):
    """Every method raises StoreError."""

    async def tokens(self) -> tuple[StoredToken, ...]:
        """All tokens, by name. A row that cannot be read is left out and told in the log: it grants nothing."""
        ...

    async def add_token(self, token: StoredToken) -> None:
        """Keep a token. Raises StoreConflict if its name or its hash is there already."""
        ...

    async def revoke_token(self, name: str, *, cut_at_us: int | None = None) -> bool:
        """Forget a token, and in the same step note that its connections are to be cut, if `cut_at_us` says when.

        Returns whether there was one of that name.
        """
        ...

    async def cuts(self) -> tuple[StoredCut, ...]:
        """The cuts of the last CUT_KEPT_S at least, the newest of each name."""
        ...

    async def satellites(self) -> tuple[Registration, ...]:
        """All satellites, by key. A row that cannot be read is left out and told in the log."""
        ...

    async def begin_generation(self, key: SatelliteKey, *, after: int, owner: str, at_us: int) -> Registration:
        """Begin the generation that follows `after` (0: none yet). Returns the satellite's newest, ours or another's.

        Raises MalformedRow if the satellite's row cannot be read: a number that is guessed may launch a second machine.
        """
        ...

    async def set_machine(self, key: SatelliteKey, generation: int, machine_id: MachineId) -> None:
        """Note which machine the generation is. Raises StoreConflict if it is over."""
        ...

    async def forget(self, key: SatelliteKey) -> None:
        """The satellite is no more; of its generations only the number is kept."""
        ...

    async def aclose(self) -> None:
        """Give up what is held open; nothing may be called afterwards."""
        ...
