"""The registry's contract: the tokens and the launched machines that stand in no configuration file.

The registry holds hashes of tokens, never a token. `tests/beds/contracts/registry.py` tests these laws:

1. A name stands for one token, and a hash for one name. A revoked token is gone, and its name is free again.
2. Each machine of a satellite has a number, its generation. A host that wants the next machine names the generation that
   it knows. Of all hosts that do so at once, one begins the next generation, and the others are told its number. So one
   launch makes one machine, however many hosts ask for it.
3. Generations only rise. The number of a forgotten machine is not used again.
4. What a launch has asked a provider for is stored before the call, and is replaced only by a host that knows it. So of one
   generation one attempt at most has an unknown outcome, whatever host dies.
5. A row that cannot be read affects its own token or satellite and no other.
"""

import dataclasses
import re
from typing import Protocol, get_args

from bentpipe.config.accounts import TOKEN_HASH_PATTERN, ScopeName, check_grants
from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of

CUT_KEPT_S = 86_400.0
"""How long a cut is kept, in seconds. A daemon that cannot read the store for longer misses the cut."""


SCOPES = frozenset(get_args(ScopeName))


class StoreConflict(StoreError):
    """What was to be written contradicts what the store holds."""

    retryable = False


class TokenExists(StoreConflict):
    """Another token has the name or the hash already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a token {name!r} already")


class TokenReplaced(StoreConflict):
    """The token was revoked and its name was given to another token while we were about to revoke it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"another token has taken the name {name!r} meanwhile")


class GenerationOver(StoreConflict):
    """A newer generation of the satellite has begun, or the satellite was forgotten."""

    def __init__(self, key: SatelliteKey, generation: int) -> None:
        super().__init__(f"generation {generation} of {key} is over")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StoredToken:
    """A token's name, its hash (`sha256:` and 64 hex digits), and its grants as the configuration writes them."""

    name: str
    token_hash: str
    grants: tuple[str, ...]
    created_us: int
    """Microseconds since the epoch."""
    scopes: tuple[str, ...] = ("use",)
    principal: str | None = None
    """Whose token it is; None: the principal has the token's name."""
    expires_us: int | None = None
    """Microseconds since the epoch; None: it does not expire."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StoredCut:
    """An order to cut the connections that a revoked token has opened. Every daemon carries it out once."""

    name: str
    at_us: int
    """Microseconds since the epoch. It only tells two cuts of one name apart: nobody compares it with a clock."""


class AttemptOver(StoreConflict):
    """Another host has tried to launch the machine meanwhile, or a newer generation has begun."""

    def __init__(self, key: SatelliteKey, generation: int) -> None:
        super().__init__(f"another host has changed what is known of the launch of {key}, generation {generation}")


@dataclasses.dataclass(frozen=True, slots=True)
class StoredAttempt:
    """A launch that a provider was asked for, and of which nobody knows that it made no machine."""

    alternative: str
    """Which alternative of the machine type; "" if the type has none."""
    at_us: int
    """When it was asked for, in microseconds since the epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredSatellite:
    """A satellite whose machines the daemon launches, with its newest machine."""

    key: SatelliteKey
    owner: str
    """The principal that owns the satellite; "" if the configuration does."""
    generation: int
    """The number of its newest machine. The first is 1."""
    machine_id: MachineId | None
    """None until the provider has named the machine of this generation."""
    created_us: int
    """When this generation began, in microseconds since the epoch."""
    attempt: StoredAttempt | None = None
    """The newest launch of this generation, unless the provider has refused it."""


def stored_token(
    name: object,
    token_hash: object,
    grants: object,
    created_us: object,
    scopes: object = ("use",),
    principal: object = None,
    expires_us: object = None,
) -> StoredToken:
    """Check a token's columns, whatever they hold. Raises MalformedRow."""
    hashed = text_of(token_hash, "hash")
    if not text_of(name, "name"):
        raise MalformedRow("name is empty")
    if not TOKEN_HASH_PATTERN.fullmatch(hashed):
        raise MalformedRow("hash is not sha256: and 64 lower-case hex digits")
    if not isinstance(grants, (list, tuple)) or not grants:
        raise MalformedRow("grants is not a list with at least one grant")
    checked = tuple(text_of(grant, "grants") for grant in grants)
    try:
        check_grants(checked)
    except ValueError as exc:
        raise MalformedRow(str(exc)) from exc
    if not isinstance(scopes, (list, tuple)) or not scopes or not set(scopes) <= SCOPES:
        raise MalformedRow("scopes is not a list with at least one of use and manage")
    return StoredToken(
        text_of(name, "name"),
        hashed,
        checked,
        whole_of(created_us, "created_us"),
        tuple(text_of(scope, "scopes") for scope in scopes),
        None if principal is None else _principal_of(principal),
        None if expires_us is None else whole_of(expires_us, "expires_us"),
    )


def _principal_of(column: object) -> str:
    if not re.match(NAME_PATTERN, text_of(column, "principal")):
        raise MalformedRow("principal is not a valid name")
    return text_of(column, "principal")


def stored_cut(name: object, at_us: object) -> StoredCut:
    """Check a cut's columns, whatever they hold. Raises MalformedRow."""
    return StoredCut(text_of(name, "name"), whole_of(at_us, "at_us"))


def stored_satellite(
    org: object,
    name: object,
    owner: object,
    generation: object,
    machine: object,
    created_us: object,
    alternative: object = None,
    attempted_us: object = None,
) -> StoredSatellite:
    """Check a satellite's columns, whatever they hold. Raises MalformedRow."""
    if whole_of(generation, "generation") < 1:
        raise MalformedRow(f"generation is {generation}, but generations begin with 1")
    return StoredSatellite(
        SatelliteKey(text_of(org, "org"), text_of(name, "name")),
        text_of(owner, "owner"),
        whole_of(generation, "generation"),
        None if machine is None else MachineId(text_of(machine, "machine")),
        whole_of(created_us, "created_us"),
        None
        if attempted_us is None
        else StoredAttempt(text_of(alternative, "alternative"), whole_of(attempted_us, "attempted_us")),
    )


class Registry(Protocol):
    """Stored tokens and satellites. Every method raises StoreError."""

    async def tokens(self) -> tuple[StoredToken, ...]:
        """All tokens, by name. A row that cannot be read is left out and logged: it grants nothing."""
        ...

    async def add_token(self, token: StoredToken) -> None:
        """Store a token. Raises TokenExists if another has its name or its hash."""
        ...

    async def revoke_token(self, name: str, *, cut_at_us: int | None = None) -> bool:
        """Delete a token. With `cut_at_us`, also store a cut of its connections, in the same atomic step.

        Returns False if there is no token of that name. Raises TokenReplaced.
        """
        ...

    async def cuts(self) -> tuple[StoredCut, ...]:
        """The newest cut of each name. Cuts are kept for CUT_KEPT_S at least."""
        ...

    async def satellites(self) -> tuple[StoredSatellite, ...]:
        """All satellites, by key. A row that cannot be read is left out and logged."""
        ...

    async def begin_generation(self, key: SatelliteKey, *, after: int, owner: str, at_us: int) -> StoredSatellite:
        """Begin the generation that follows `after` (0: the first), unless another host has begun it already.

        Returns the satellite with its newest generation. Raises MalformedRow if the satellite's row cannot be read:
        a guessed number could launch a second machine.
        """
        ...

    async def set_machine(self, key: SatelliteKey, generation: int, machine_id: MachineId) -> None:
        """Store which machine the provider made for the generation. Raises GenerationOver."""
        ...

    async def set_attempt(
        self, key: SatelliteKey, generation: int, *, after: StoredAttempt | None, attempt: StoredAttempt | None
    ) -> None:
        """Replace the generation's attempt `after` by `attempt`. Raises AttemptOver if the store holds neither of them."""
        ...

    async def forget(self, key: SatelliteKey, *, generation: int) -> None:
        """Delete the satellite and its machines' identity, and keep only the number of its newest generation.

        Does nothing if a generation after `generation` has begun: another host was first, and its machine is not ours to
        forget.
        """
        ...

    async def aclose(self) -> None:
        """Close files and connections. No method may be called afterwards."""
        ...
