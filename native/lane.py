"""What C tells of a client that it has brought to its satellite, or not: struct bp_lane_facts of include/bp.h."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, cast

from bentpipe.native.admission import Entering, NativeAdmission
from bentpipe.native.greeting import GreetingLimits
from bentpipe.native.lib import Pointer, address, ffi
from bentpipe.native.request import DIGEST_BYTES

REMOVED, MOMENTS, TLS_VERSION_BYTES = 16, 4, 16
"""Bounds of enum bp_lane_sizes."""


@dataclasses.dataclass(frozen=True, slots=True)
class LaneOptions:
    """struct bp_lane_options."""

    admission: NativeAdmission
    limits: GreetingLimits
    """Used by the joiner's thread from now on, as is `admission`."""
    most_fields: int
    silent_clients: int
    request_s: float
    reach_s: float
    join_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """What is known of a client."""

    opening: int
    """Its OpeningId."""
    why: Entering
    """ENTERED: it was committed."""
    error: int
    server_name: str
    """Of TLS, as are the next two; "" if there is none."""
    alpn: str
    tls_version: str
    mark: int
    said_bytes: int
    removed: tuple[tuple[int, int], ...]
    """Ranges (offset, length) of what it has said that are not replayed."""
    gate: int
    generation: int
    seat: int
    payer: int
    digest: bytes
    streams: int
    window_bytes: int
    traceparent: bytes
    tracestate: bytes
    moments_us: tuple[int, ...]
    """Of CLOCK_MONOTONIC; 0 if it was not waited for."""
    read_bytes: int
    sent_bytes: int


class _CRemoved(Protocol):
    at: int
    bytes: int


class _CFacts(Protocol):
    opening: Pointer
    why: int
    error: int
    has_tls: bool
    server_name: Pointer
    alpn: Pointer
    tls_version: Pointer
    mark: int
    said_bytes: int
    removed_count: int
    removed: Sequence[_CRemoved]
    gate: int
    generation: int
    seat: int
    payer: int
    digest: Pointer
    streams: int
    window_bytes: int
    traceparent: Pointer
    traceparent_bytes: int
    tracestate: Pointer
    tracestate_bytes: int
    moment_us: Sequence[int]
    moment_count: int
    read_bytes: int
    sent_bytes: int


def read_lane(facts: Pointer) -> Lane:
    """Copy the facts."""
    c = cast(_CFacts, facts)
    return Lane(
        address(c.opening),
        Entering(c.why),
        c.error,
        *((_text(c.server_name), _text(c.alpn), _text(c.tls_version)) if c.has_tls else ("", "", "")),
        c.mark,
        c.said_bytes,
        tuple((c.removed[at].at, c.removed[at].bytes) for at in range(c.removed_count)),
        c.gate,
        c.generation,
        c.seat,
        c.payer,
        bytes(ffi.buffer(c.digest, DIGEST_BYTES)),
        c.streams,
        c.window_bytes,
        bytes(ffi.buffer(c.traceparent, c.traceparent_bytes)),
        bytes(ffi.buffer(c.tracestate, c.tracestate_bytes)),
        tuple(c.moment_us[at] for at in range(c.moment_count)),
        c.read_bytes,
        c.sent_bytes,
    )


def _text(text: Pointer) -> str:
    return ffi.string(text).decode(errors="replace")
