"""Connects to a satellite that counts as awake. A machine that runs need not listen yet: refusals are retried to a
deadline."""

import dataclasses
import errno
import logging
import os
import socket
from collections.abc import Callable

import trio

from bentpipe.daemon.edge.transport import Transport, TransportError
from bentpipe.daemon.edge.unless import unless
from bentpipe.daemon.errors import BentpipeError, DialFailed, Source
from bentpipe.daemon.model import Address
from bentpipe.native.tls import TlsClientContext, TlsConnection, TlsError

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


@dataclasses.dataclass(frozen=True, slots=True)
class SatelliteTls:
    """How a satellite is known by TLS."""

    context: TlsClientContext
    server_name: str | None = None
    """The name that its certificate must have; None for its address."""
    refused: str = ""
    """Why no machine can be accepted as the satellite now; "" if one can. Nothing is sent then."""


FindTls = Callable[[], SatelliteTls | None]
"""Asked at each attempt: the satellite's machine may be replaced, or get its certificate, meanwhile. None: plaintext."""


async def dial_at_once(address: Address, tls: SatelliteTls | None) -> Transport | None:
    """Try once, for AT_ONCE_S at most. Returns None if that fails; `dial` then finds out why."""
    with trio.move_on_after(AT_ONCE_S):
        try:
            return await dial_once(address, tls)
        except Exception as exc:
            log.debug("dial failed", extra={"fields": {"address": str(address), "error": reason_of(exc)}})
            return None
    return None


class SatelliteUnreachable(BentpipeError):
    """Not even TCP connects; `str()` is the last attempt's reason. No client is told: it waits on."""

    source = Source.SATELLITE
    retryable = True


async def dial(address: Address, find_tls: FindTls, over: trio.Event) -> Transport | None:
    """Connect, and complete the TLS handshake if there is one. Returns None once `over` is set: see Lease.

    Raises Unreachable if TCP does not connect for UNREACHABLE_S, DialFailed if the satellite answers and then fails.
    """
    made: Transport | None = None

    async def connect() -> None:
        nonlocal made
        made = await _dial(address, find_tls)

    try:
        await unless(over, connect)
    except BaseException:
        if made is not None:
            made.close()
        raise
    return made


async def _dial(address: Address, find_tls: FindTls) -> Transport:
    reason = "no attempt ended"
    unreachable_at = trio.current_time() + UNREACHABLE_S
    with trio.move_on_after(DIAL_DEADLINE_S):
        while True:
            with trio.move_on_after(ATTEMPT_S) as attempt:
                try:
                    transport = await _connect(address)
                    unreachable_at = trio.current_time() + UNREACHABLE_S  # something answers there
                    return await _secure(transport, address, find_tls())
                except Exception as exc:
                    reason = reason_of(exc)
            if attempt.cancelled_caught:
                reason = f"no answer in {ATTEMPT_S:g} s"
            if trio.current_time() >= unreachable_at:
                raise SatelliteUnreachable(f"{address}: {reason}")
            await trio.sleep(RETRY_S)
    raise DialFailed(f"{address}: {reason}", peer_hint=f"the satellite is awake but could not be used: {reason}")


def reason_of(error: Exception) -> str:
    """Say why an attempt failed. It may be any exception: from the resolver, from TLS, or because no descriptor is left."""
    return str(error) if isinstance(error, OSError | TransportError | TlsError) else f"{type(error).__name__}: {error}"


async def dial_once(address: Address, tls: SatelliteTls | None) -> Transport:
    """Try once. Raises any exception: `reason_of` has its words."""
    return await _secure(await _connect(address), address, tls)


async def _connect(address: Address) -> Transport:
    family, target = await _resolve(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(target)
        if error == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    try:
        return Transport(sock)
    except BaseException:
        sock.close()
        raise


async def _secure(transport: Transport, address: Address, tls: SatelliteTls | None) -> Transport:
    try:
        if tls is not None:
            if tls.refused:
                raise TlsError(tls.refused)
            await transport.start_tls(
                TlsConnection(tls.context, transport.fileno, server_name=tls.server_name or address.host)
            )
    except BaseException:
        transport.close()
        raise
    return transport


async def _resolve(address: Address) -> tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]:
    """Find the socket address. A numeric IPv4 address, as most providers give it, needs no resolver."""
    try:
        socket.inet_pton(socket.AF_INET, address.host)
    except OSError:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, target = found[0]
        return family, target
    return socket.AF_INET, (address.host, address.port)
