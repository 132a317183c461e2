"""Dialling a satellite that may die: refusals are retried until the lease is over."""

import contextlib
import functools
import socket
from pathlib import Path

import pytest
import trio
import trustme

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.edge import dial as dialling
from bentpipe.daemon.edge.dial import SatelliteUnreachable, dial
from bentpipe.daemon.errors import DialFailed
from bentpipe.daemon.model import Address
from bentpipe.native.tls import TlsClientContext

DEADLINE_S = 10.0


async def test_a_satellite_that_begins_to_listen_is_reached() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))

        async def listen_soon() -> None:
            await trio.sleep(0.1)
            server.listen()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen_soon)
            with trio.fail_after(DEADLINE_S):
                target = await dial(Address(*server.getsockname()), lambda: None, trio.Event())
        assert target is not None
        target.close()


async def test_a_satellite_that_died_is_given_up_at_once_in_the_middle_of_an_attempt() -> None:
    with socket.socket() as full, contextlib.ExitStack() as crowd:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # beyond its backlog the kernel drops SYNs: an attempt lasts
            filler = crowd.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        over = trio.Event()

        async def die_soon() -> None:
            await trio.sleep(0.1)
            over.set()

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(die_soon)
            assert await dial(Address(*full.getsockname()), lambda: None, over) is None
        assert trio.current_time() - began < dialling.ATTEMPT_S / 2


async def test_a_port_that_answers_and_fails_does_not_count_as_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "UNREACHABLE_S", 0.1)
    monkeypatch.setattr(dialling, "DIAL_DEADLINE_S", 0.5)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = SatelliteTls(TlsClientContext(ca=tmp_path / "ca.pem"), "satellite")
    async with trio.open_nursery() as nursery:

        async def hang_up(stream: trio.SocketStream) -> None:
            await stream.aclose()

        serve = functools.partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        address = Address("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises((DialFailed, SatelliteUnreachable)) as caught:
            await dial(address, lambda: tls, trio.Event())
        assert caught.type is DialFailed
        nursery.cancel_scope.cancel()
