"""One attempt or many, against real sockets: what answers, what refuses, what keeps silent."""

import contextlib
import socket

import pytest
import trio

from bentpipe.daemon.edge import dial as dialling
from bentpipe.daemon.edge.dial import SatelliteUnreachable, dial, dial_at_once
from bentpipe.daemon.model import Address


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_a_port_that_listens_is_reached_at_once(host: str) -> None:
    family, _, _, _, name = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.create_server((name[0], 0), family=family) as server:
        address = Address(host, server.getsockname()[1])
        transport = await dial_at_once(address, None)
        assert transport is not None
        server.accept()[0].close()
        assert await transport.receive_some() == b""
        transport.close()


async def test_a_port_that_refuses_ends_the_first_attempt_and_dial_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "UNREACHABLE_S", 0.2)
    with socket.socket() as unheard:  # bound and not listening: the port is nobody else's
        unheard.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", unheard.getsockname()[1])
        assert await dial_at_once(address, None) is None
        with pytest.raises(SatelliteUnreachable, match="Connection refused"):
            await dial(address, lambda: None, trio.Event())
        unheard.listen()
        target = await dial(address, lambda: None, trio.Event())
        assert target is not None
        target.close()


async def test_a_port_that_keeps_silent_ends_the_first_attempt_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "AT_ONCE_S", 0.05)
    with socket.socket() as full, contextlib.ExitStack() as crowd:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # beyond its backlog the kernel drops SYNs
            filler = crowd.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        assert await dial_at_once(Address("127.0.0.1", full.getsockname()[1]), None) is None
