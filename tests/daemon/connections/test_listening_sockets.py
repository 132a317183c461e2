"""Sockets that are exchanged while they are served: all that was open stays open until the new ones are."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from beds.ports import free_port
from bentpipe.daemon.connections.listener import bind
from bentpipe.daemon.connections.listening_sockets import ListeningSockets, Place
from bentpipe.daemon.tasks import Owner, run_owned

DEADLINE_S = 20.0


def open_at(place: Place) -> list[socket.socket]:
    if isinstance(place, Path):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(place))
        sock.listen()
        return [sock]
    return bind(*place)


@pytest.fixture
async def served() -> AsyncIterator[ListeningSockets]:
    """Each connection is told the address at which it came, whenever it asks."""
    sockets = ListeningSockets({})

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            async for _ in stream:
                await stream.send_all(repr(stream.socket.getsockname()).encode())

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:

            def begin(stream: trio.SocketStream) -> None:
                nursery.start_soon(run_owned, Owner("test"), serve, stream)

            nursery.start_soon(sockets.run_accepting, Owner("test"), begin)
            yield sockets
            nursery.cancel_scope.cancel()
    sockets.close()


async def asked(stream: trio.SocketStream) -> str:
    await stream.send_all(b"where?")
    return (await stream.receive_some()).decode()


async def reached(place: Place) -> str:
    """What a new connection is told."""
    stream = await (trio.open_unix_socket(str(place)) if isinstance(place, Path) else trio.open_tcp_stream(*place))
    async with stream:
        return await asked(stream)


async def test_connections_go_on_and_new_ones_come_to_the_new_place(served: ListeningSockets, tmp_path: Path) -> None:
    first, second = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    path = tmp_path / "page.sock"
    served.prepare([first, path], open_at).take()
    async with await trio.open_tcp_stream(*first) as old:
        assert await asked(old) == repr(first)
        local = await reached(path)
        served.prepare([second, path], open_at).take()
        assert served.addresses == (second,)
        assert await asked(old) == repr(first), "what was accepted goes on"
        assert await reached(path) == local, "this one was kept"
        assert await reached(second) == repr(second)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="all attempts to connect"):
            await reached(first)
    served.prepare([], open_at).take()
    assert served.all == ()


async def test_what_cannot_be_opened_leaves_all_as_it_was(served: ListeningSockets) -> None:
    place, other = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    served.prepare([place], open_at).take()
    with socket.create_server(("127.0.0.1", 0)) as strangers:
        taken = ("127.0.0.1", int(strangers.getsockname()[1]))
        with pytest.raises(OSError, match="already in use"):
            served.prepare([other, taken], open_at)
    assert served.addresses == (place,)
    assert await reached(place) == repr(place)
    with pytest.raises(OSError, match="all attempts to connect"):
        await reached(other)


async def test_what_is_let_go_is_closed(served: ListeningSockets) -> None:
    place = ("127.0.0.1", free_port())
    served.prepare([place], open_at).let_go()
    assert served.all == ()
    served.prepare([place], open_at).take()
    assert await reached(place) == repr(place)


async def test_the_same_port_at_another_address(served: ListeningSockets) -> None:
    """Both sockets have the port for a moment, so that there is no time without one. Nobody can join them later."""
    port = free_port()
    served.prepare([("127.0.0.1", port)], open_at).take()
    async with await trio.open_tcp_stream("127.0.0.1", port) as old:
        for host in ("", "127.0.0.1", "127.0.0.2"):
            served.prepare([(host, port)], open_at).take()
            assert str(port) in await reached((host or "127.0.0.1", port))
        assert await asked(old) == repr(("127.0.0.1", port))
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="already in use"):
            thief.bind(("127.0.0.2", port))
