"""Connects to a satellite that is said to be awake. "Running" is not "listening": refusals are retried to a deadline."""

import errno
import logging
import os
import socket
from collections.abc import Callable

import trio

from bentpipe.daemon.edge.transport import Transport, TransportError
from bentpipe.daemon.errors import DialFailed
from bentpipe.daemon.model import Address
from bentpipe.native.tls import TlsClientContext, TlsConnection, TlsError

log = logging.getLogger("bentpipe.edge")

DIAL_DEADLINE_S = 15.0
"""From the lease to a connection. The fleet saw the port listen a moment ago, so this covers a restart, not a boot."""

ATTEMPT_S = 2.0
"""One attempt: a machine whose address is stale swallows SYNs, and a fresh look at it must not wait for the kernel's
two minutes."""

RETRY_S = 0.03
"""Between refused attempts; tens of milliseconds, since a held client feels each of them."""

AT_ONCE_S = 0.5
"""The first attempt for a client that nobody watches yet: short enough that its PINGs and its leaving can wait."""


async def dial_at_once(address: Address, tls: TlsClientContext | None, server_name: str | None) -> Transport | None:
    """Try once, AT_ONCE_S at most. None if that fails: `dial` is then for finding out why."""
    with trio.move_on_after(AT_ONCE_S):
        try:
            return await _attempt(address, tls, server_name)
        except Exception as exc:
            log.debug("dial failed", extra={"fields": {"address": str(address), "error": reason_of(exc)}})
            return None
    return None


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
                except Exception as exc:
                    reason = reason_of(exc)
            if attempt.cancelled_caught:
                reason = f"no answer in {ATTEMPT_S:g} s"
            if not is_awake():
                return None
            await trio.sleep(RETRY_S)
    raise DialFailed(f"{address}: {reason}", peer_hint=f"the satellite is awake but could not be reached: {reason}")


def reason_of(error: Exception) -> str:
    """Why an attempt failed. Any exception counts: a name that no resolver takes, a TLS context, no descriptor left."""
    return str(error) if isinstance(error, OSError | TransportError | TlsError) else f"{type(error).__name__}: {error}"


async def _attempt(address: Address, tls: TlsClientContext | None, server_name: str | None) -> Transport:
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
        transport = Transport(sock)
    except BaseException:
        sock.close()
        raise
    try:
        if tls is not None:
            await transport.start_tls(TlsConnection(tls, transport.fileno, server_name=server_name or address.host))
    except BaseException:
        transport.close()
        raise
    return transport


async def _resolve(address: Address) -> tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]:
    """Find where to connect. An address in figures, as providers give it, is not asked about."""
    try:
        socket.inet_pton(socket.AF_INET, address.host)
    except OSError:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, target = found[0]
        return family, target
    return socket.AF_INET, (address.host, address.port)
