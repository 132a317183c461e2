"""One attempt to connect to a satellite: name, TCP, and TLS with the satellite's own certificate. Never tries twice."""

import dataclasses
import errno
import os
import socket

import trio

from bentpipe.daemon.connections.transport import Transport, TransportError
from bentpipe.daemon.connections.trust_material import TrustMaterial
from bentpipe.daemon.model import Address
from bentpipe.native.tls import TlsClientContext, TlsConnection, TlsError

NO_CONTEXT = "the satellite's certificates are the data plane's, which makes the connection"


@dataclasses.dataclass(frozen=True, slots=True)
class SatelliteTls:
    """How a satellite is known by TLS."""

    context: TlsClientContext | None
    """None: the data plane has it, and this process cannot connect to the satellite itself."""
    server_name: str | None = None
    """The name that its certificate must have; None for its address."""
    refused: str = ""
    """Why no machine can be accepted as the satellite now; "" if one can. Nothing is sent then."""
    trust: str = ""
    """What a data plane of its own calls `context` (daemon/planes, OPEN)."""
    material: TrustMaterial | None = None
    """What `context` was made of; None if that is in the files of the configuration, which a data plane reads itself."""


def reason_of(error: Exception) -> str:
    """Say why an attempt failed. It may be any exception: from the resolver, from TLS, or because no descriptor is left."""
    return str(error) if isinstance(error, OSError | TransportError | TlsError) else f"{type(error).__name__}: {error}"


async def dial_once(address: Address, tls: SatelliteTls | None) -> Transport:
    """Try once. Raises any exception: `reason_of` has its words."""
    return await secure(await connect(address), address, tls)


class Connecting:
    """A TCP connection that is being made, without a wait so far. The maker calls `finish`, which gives the socket away."""

    def __init__(self, target: "SocketAddress") -> None:
        """Begin. Raises OSError if it fails at once."""
        family, self._target = target
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._sock.setblocking(False)
            error = self._sock.connect_ex(self._target)
            if error == errno.EINPROGRESS:
                error = self._sock.connect_ex(self._target)  # to a local satellite it is over already: 0 (connect(2))
            if error not in (0, errno.EALREADY):
                raise OSError(error, os.strerror(error))
        except BaseException:
            self._sock.close()
            raise
        self.is_done = not error
        """Whether it is connected."""

    async def finish(self) -> Transport:
        """Wait until it is connected, if it is not. Raises OSError, and closes the socket."""
        try:
            if not self.is_done:
                await trio.lowlevel.wait_writable(self._sock)
                error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
            return Transport(self._sock)
        except BaseException:
            self._sock.close()
            raise


async def connect(address: Address) -> Transport:
    """Connect by TCP. Raises OSError, or what the resolver raises."""
    return await Connecting(await resolve(address)).finish()


async def secure(transport: Transport, address: Address, tls: SatelliteTls | None) -> Transport:
    """Complete the TLS handshake, if there is TLS. Closes the transport and raises any exception if that fails."""
    try:
        if tls is not None:
            if tls.refused or tls.context is None:
                raise TlsError(tls.refused or NO_CONTEXT)
            await transport.start_tls(
                TlsConnection(tls.context, transport.fileno, server_name=tls.server_name or address.host)
            )
    except BaseException:
        transport.close()
        raise
    return transport


SocketAddress = tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]
"""What connect(2) needs."""


def numeric(address: Address) -> SocketAddress | None:
    """The socket address of a numeric IPv4 address, as most providers give it; None if a resolver is needed."""
    try:
        socket.inet_pton(socket.AF_INET, address.host)
    except (OSError, ValueError):
        return None
    return socket.AF_INET, (address.host, address.port)


async def resolve(address: Address) -> SocketAddress:
    """Find the socket address. Raises what the resolver raises."""
    known = numeric(address)
    if known is not None:
        return known
    found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family, _, _, _, target = found[0]
    return family, target
