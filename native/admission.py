"""The binding of the admission in C: the tokens, gates and credits that were told. include/bp.h says what it does.

It takes plain values: daemon/dataplane/admission_tables.py makes them of what the control plane tells.
"""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Protocol, cast

from bentpipe.native.lib import Pointer, check, ffi, lib
from bentpipe.native.tls import TlsClientContext

GRANTED_TOKENS, PAYERS, GATES_OPEN, GATE_INODES = 65_536, 262_144, 16_384, 64
TLS_NAME_BYTES, ADDRESS_BYTES = 256, 16
"""Bounds of enum bp_admission_sizes."""


class Entering(enum.IntEnum):
    """enum bp_entering."""

    ENTERED = 0
    NO_TOKEN = 1
    NOT_GRANTED = 2
    EXPIRED = 3
    NO_GATE = 4
    RUN_OUT = 5
    NO_CREDIT = 6
    UNUSUAL = 7
    SILENT = 8
    LEFT = 9
    UNREACHED = 10
    STRANGER = 11
    CHANGED = 12
    STOPPED = 13


@dataclasses.dataclass(frozen=True, slots=True)
class GateTarget:
    """struct bp_gate_facts."""

    number: int
    org: str
    name: str
    until_us: int
    address: bytes
    """Packed; b"" if the satellite cannot be connected to here."""
    port: int
    wants_tls: bool = False
    context: TlsClientContext | None = None
    server_name: bytes = b""
    owned: bool = False
    uid: int = 0
    inodes: Sequence[int] = ()


class _CEntry(Protocol):
    number: int
    generation: int
    seat: int
    payer: int


def satellite_of(org: str, name: str) -> Pointer:
    """A struct bp_satellite."""
    parts = org.encode(), name.encode()
    fields = {"org_bytes": len(parts[0]), "name_bytes": len(parts[1]), "org": parts[0], "name": parts[1]}
    return ffi.new("struct bp_satellite *", fields)


class GateEntry:
    """One client that was admitted: a struct bp_entry."""

    __slots__ = ("generation", "number", "payer", "pointer", "seat")

    def __init__(self, pointer: Pointer) -> None:
        self.pointer = pointer
        c = cast(_CEntry, pointer)
        self.number = c.number
        """The gate's."""
        self.generation = c.generation
        """The token's table's."""
        self.seat, self.payer = c.seat, c.payer


class NativeAdmission:
    """What was told. All times are microseconds. Raises OSError without memory."""

    def __init__(self) -> None:
        made = ffi.new("bp_admission **")
        self.pointer: Pointer = ffi.NULL
        check(lib.bp_admission_new(made))
        self.pointer = cast(list[Pointer], made)[0]

    def reset(self) -> None:
        """Forget everything."""
        lib.bp_admission_reset(self.pointer)

    def add_token(self, digest: bytes, expires_us: int, payer: int, identity: int, patterns: bytes) -> None:
        """One token of the next table. Raises OSError."""
        check(lib.bp_admission_add_token(self.pointer, ffi.from_buffer(digest), expires_us, payer, identity, patterns))

    def take_table(self, generation: int, streams: int, window_bytes: int) -> None:
        """The next table counts from now on."""
        lib.bp_admission_take_table(self.pointer, generation, streams, window_bytes)

    def credit(self, payer: int, allowed: int) -> int:
        """So many clients of a principal may be admitted in all. Returns how many were. Raises OSError."""
        used = ffi.new("uint64_t *")
        check(lib.bp_admission_credit(self.pointer, payer, allowed, used))
        return cast(list[int], used)[0]

    def open_gate(self, gate: GateTarget) -> None:
        """Raises OSError."""
        server_name = ffi.new("char[]", gate.server_name)
        facts = ffi.new(
            "struct bp_gate_facts *",
            {
                "number": gate.number,
                "satellite": cast(list[Pointer], satellite_of(gate.org, gate.name))[0],
                "until_us": gate.until_us,
                "address": gate.address,
                "address_bytes": len(gate.address),
                "port": gate.port,
                "wants_tls": gate.wants_tls,
                "tls": gate.context.pointer if gate.context is not None else ffi.NULL,
                "server_name": server_name,
                "owned": gate.owned,
                "uid": gate.uid,
                "inode_count": len(gate.inodes),
                "inodes": list(gate.inodes),
            },
        )
        check(lib.bp_gate_open(self.pointer, facts))

    def trust_gate(self, number: int, context: TlsClientContext | None, server_name: bytes) -> None:
        """The satellite's TLS is another one from now on. Raises OSError."""
        pointer = context.pointer if context is not None else ffi.NULL
        check(lib.bp_gate_trust(self.pointer, number, pointer, server_name))

    def renew_gate(self, number: int, until_us: int) -> None:
        """It is good for longer, if it is open."""
        lib.bp_gate_renew(self.pointer, number, until_us)

    def shut_gate(self, number: int) -> None:
        """Nobody goes through from now on."""
        lib.bp_gate_shut(self.pointer, number)

    def may_enter(self, now_us: int) -> bool:
        """Whether there may be a gate through which a client can go now."""
        return lib.bp_admission_may_enter(self.pointer, now_us)

    def enter(self, digest: bytes, org: str, name: str, now_us: int, wall_us: int) -> GateEntry | Entering:
        """Take a credit for a client, if it may use the satellite and the satellite's gate is open."""
        entry, satellite = ffi.new("struct bp_entry *"), satellite_of(org, name)
        found = lib.bp_admission_enter(self.pointer, ffi.from_buffer(digest), satellite, now_us, wall_us, entry)
        return GateEntry(entry) if found == 0 else Entering(found)

    def holds(self, entry: GateEntry, now_us: int, wall_us: int) -> bool:
        """Whether the client may still be brought to its satellite."""
        return lib.bp_admission_holds(self.pointer, entry.pointer, now_us, wall_us)

    def leave(self, entry: GateEntry, *, back: bool) -> None:
        """The client was brought to its satellite, or its credit is given `back`."""
        lib.bp_admission_leave(self.pointer, entry.pointer, back)

    def give_back(self, seat: int, payer: int) -> None:
        """The credit is free of a client that was brought to its satellite, and has ended."""
        lib.bp_admission_give_back(self.pointer, seat, payer)

    def close(self) -> None:
        """Free it. Idempotent; nobody is on the way any more."""
        pointer, self.pointer = self.pointer, ffi.NULL
        if pointer != ffi.NULL:
            lib.bp_admission_free(pointer)

    def __del__(self) -> None:
        self.close()
