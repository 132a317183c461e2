"""Connects to a satellite that counts as awake. A machine that runs need not listen yet: refusals are retried to a
deadline."""

import logging
from collections.abc import Callable
from typing import Protocol

import trio

from bentpipe.daemon.connections.dial_once import Connecting, SatelliteTls, connect, numeric, reason_of, secure
from bentpipe.daemon.connections.transport import Transport, TransportError
from bentpipe.daemon.edge.channel import Channel
from bentpipe.daemon.edge.unless import unless
from bentpipe.daemon.errors import BentpipeError, DialFailed, Source
from bentpipe.daemon.model import Address

log = logging.getLogger("bentpipe.edge")

DIAL_DEADLINE_S = 15.0
"""From the lease to a connection, including the TLS handshake. The fleet saw the port listen a moment ago."""

UNREACHABLE_S = 3.0
"""If TCP does not connect for this time, the satellite counts as unreachable. The fleet then looks at it and probes it once
for all clients that wait, and they go on waiting."""

ATTEMPT_S = 2.0
"""For one attempt. A stale address may swallow SYNs, and a fresh look at the machine must not wait for the kernel's two
minutes."""

RETRY_S = 0.03
"""Pause between refused attempts: tens of milliseconds, since it delays a held client."""

AT_ONCE_S = 0.5
"""For the first attempt, while the client is not watched: so short that its PINGs and its end can wait."""

FindTls = Callable[[], SatelliteTls | None]
"""Asked at each attempt: the satellite's machine may be replaced, or get its certificate, meanwhile. None: plaintext."""


class NotConnected(TransportError):
    """Not even TCP has connected."""


class Dials(Protocol):
    """One attempt to connect to a satellite, and to complete the TLS handshake if there is one."""

    async def __call__(self, address: Address, tls: SatelliteTls | None, deadline_s: float) -> Channel:
        """Raises NotConnected, or any other exception if TCP had connected: `reason_of` has its words."""
        ...


async def dial_here(address: Address, tls: SatelliteTls | None, deadline_s: float) -> Transport:
    """Dial from this process: see Dials."""
    known = numeric(address)
    try:
        connecting = None if known is None else Connecting(known)
    except OSError as exc:
        raise NotConnected(reason_of(exc)) from exc
    if connecting is not None and connecting.is_done and tls is None:
        return await connecting.finish()  # nearly always so for a local satellite, without the cost of a deadline
    transport: Transport | None = None
    with trio.move_on_after(deadline_s):
        try:
            transport = await (connect(address) if connecting is None else connecting.finish())
        except Exception as exc:
            raise NotConnected(reason_of(exc)) from exc
        return await secure(transport, address, tls)
    words = f"no answer in {deadline_s:g} s"
    raise NotConnected(words) if transport is None else TransportError(words)


async def dial_at_once(address: Address, tls: SatelliteTls | None, dials: Dials = dial_here) -> Channel | None:
    """Try once, for AT_ONCE_S at most. Returns None if that fails; `dial` then finds out why."""
    try:
        return await dials(address, tls, AT_ONCE_S)
    except Exception as exc:
        log.debug("dial failed", extra={"fields": {"address": str(address), "error": reason_of(exc)}})
        return None


class SatelliteUnreachable(BentpipeError):
    """Not even TCP connects; `str()` is the last attempt's reason. No client is told: it waits on."""

    source = Source.SATELLITE
    retryable = True


async def dial(address: Address, find_tls: FindTls, over: trio.Event, dials: Dials = dial_here) -> Channel | None:
    """Connect, and complete the TLS handshake if there is one. Returns None once `over` is set: see Lease.

    Raises Unreachable if TCP does not connect for UNREACHABLE_S, DialFailed if the satellite answers and then fails.
    """
    made: Channel | None = None

    async def attempt() -> None:
        nonlocal made
        made = await _dial(address, find_tls, dials)

    try:
        await unless(over, attempt)
    except BaseException:
        if made is not None:
            made.close()
        raise
    return made


async def _dial(address: Address, find_tls: FindTls, dials: Dials) -> Channel:
    reason = "no attempt ended"
    unreachable_at = trio.current_time() + UNREACHABLE_S
    with trio.move_on_after(DIAL_DEADLINE_S):
        while True:
            try:
                return await dials(address, find_tls(), ATTEMPT_S)
            except NotConnected as exc:
                reason = reason_of(exc)
            except Exception as exc:
                reason = reason_of(exc)
                unreachable_at = trio.current_time() + UNREACHABLE_S  # something answers there
            if trio.current_time() >= unreachable_at:
                raise SatelliteUnreachable(f"{address}: {reason}")
            await trio.sleep(RETRY_S)
    raise DialFailed(f"{address}: {reason}", peer_hint=f"the satellite is awake but could not be used: {reason}")
