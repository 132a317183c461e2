"""Connects to a satellite that is said to be awake. "Running" is not "listening": refusals are retried to a deadline."""

import errno
import logging
import os
import socket

import trio

from bentpipe.daemon.edge.transport import Transport, TransportError
from bentpipe.daemon.errors import DialFailed
from bentpipe.daemon.model import Address
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.native.tls import TlsClientContext, TlsConnection, TlsError

log = logging.getLogger("bentpipe.edge")

DIAL_DEADLINE_S = 15.0
"""From the lease to a connection, TLS handshake included. The fleet saw the port listen a moment ago."""

UNREACHABLE_S = 3.0
"""For so long not even TCP connects, until the satellite counts as unreachable: it is then looked at and probed once for
all who wait, and they go on waiting."""

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


class Unreachable(Exception):
    """Not even TCP connects; `str()` is the last attempt's reason."""


async def dial(
    address: Address, tls: TlsClientContext | None, server_name: str | None, over: trio.Event
) -> Transport | None:
    """Connect, and complete the TLS handshake if `tls` is given. Returns None once `over` is set: see Lease.

    Raises Unreachable if TCP does not connect for UNREACHABLE_S, DialFailed if the satellite answers and then fails.
    """
    made: Transport | None = None
    failure: Unreachable | DialFailed | None = None
    try:
        async with trio.open_nursery() as nursery:

            async def end_if_over() -> None:
                await over.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(run_owned, Owner("dial", str(address), Decision.GIVE_UP), end_if_over)
            try:
                made = await _dial(address, tls, server_name)
            except (Unreachable, DialFailed) as exc:
                failure = exc
            nursery.cancel_scope.cancel()
    except BaseException:
        if made is not None:
            made.close()
        raise
    if failure is None:
        return made
    try:
        raise failure
    finally:
        failure = None  # or its traceback would keep this frame until the next collection


async def _dial(address: Address, tls: TlsClientContext | None, server_name: str | None) -> Transport:
    reason = "no attempt ended"
    unreachable_at = trio.current_time() + UNREACHABLE_S
    with trio.move_on_after(DIAL_DEADLINE_S):
        while True:
            with trio.move_on_after(ATTEMPT_S) as attempt:
                try:
                    transport = await _connect(address)
                    unreachable_at = trio.current_time() + UNREACHABLE_S  # somebody answers there
                    return await _secure(transport, address, tls, server_name)
                except Exception as exc:
                    reason = reason_of(exc)
            if attempt.cancelled_caught:
                reason = f"no answer in {ATTEMPT_S:g} s"
            if trio.current_time() >= unreachable_at:
                raise Unreachable(f"{address}: {reason}")
            await trio.sleep(RETRY_S)
    raise DialFailed(f"{address}: {reason}", peer_hint=f"the satellite is awake but could not be used: {reason}")


def reason_of(error: Exception) -> str:
    """Why an attempt failed. Any exception counts: a name that no resolver takes, a TLS context, no descriptor left."""
    return str(error) if isinstance(error, OSError | TransportError | TlsError) else f"{type(error).__name__}: {error}"


async def _attempt(address: Address, tls: TlsClientContext | None, server_name: str | None) -> Transport:
    return await _secure(await _connect(address), address, tls, server_name)


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


async def _secure(
    transport: Transport, address: Address, tls: TlsClientContext | None, server_name: str | None
) -> Transport:
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
