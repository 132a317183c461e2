"""Connects to a satellite that is said to be awake. "Running" is not "listening": refusals are retried to a deadline."""

import socket
from collections.abc import Callable

import trio

from bentpipe.daemon.edge.transport import Transport, TransportError
from bentpipe.daemon.errors import DialFailed
from bentpipe.daemon.model import Address
from bentpipe.native.tls import TlsClientContext, TlsConnection

DIAL_DEADLINE_S = 15.0
"""From the lease to a connection. The fleet saw the port listen a moment ago, so this covers a restart, not a boot."""

ATTEMPT_S = 2.0
"""One attempt: a machine whose address is stale swallows SYNs, and a fresh look at it must not wait for the kernel's
two minutes."""

RETRY_S = 0.03
"""Between refused attempts; tens of milliseconds, since a held client feels each of them."""


async def dial(
    address: Address, tls: TlsClientContext | None, server_name: str | None, is_awake: Callable[[], bool]
) -> Transport | None:
    """Connect, and complete the TLS handshake if `tls` is given. Raises DialFailed with the last attempt's reason.

    Returns None if an attempt has failed and the satellite is no longer awake: nobody will answer there any more.
    """
    reason = "no attempt ended"
    with trio.move_on_after(DIAL_DEADLINE_S):
        while True:
            with trio.move_on_after(ATTEMPT_S) as attempt:
                try:
                    return await _attempt(address, tls, server_name)
                except (OSError, TransportError) as exc:
                    reason = str(exc)
            if attempt.cancelled_caught:
                reason = f"no answer in {ATTEMPT_S:g} s"
            if not is_awake():
                return None
            await trio.sleep(RETRY_S)
    raise DialFailed(f"{address}: {reason}", peer_hint=f"the satellite is awake but could not be reached: {reason}")


async def _attempt(address: Address, tls: TlsClientContext | None, server_name: str | None) -> Transport:
    family, kind, protocol, _, target = (
        await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    )[0]
    sock = trio.socket.socket(family, kind, protocol)
    try:
        await sock.connect(target)
        plain = socket.socket(fileno=sock.detach())
    except BaseException:
        sock.close()
        raise
    transport = Transport(plain)
    try:
        if tls is not None:
            await transport.start_tls(TlsConnection(tls, transport.fileno, server_name=server_name or address.host))
    except BaseException:
        transport.close()
        raise
    return transport
