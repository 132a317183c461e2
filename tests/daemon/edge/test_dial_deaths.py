"""Dialling a satellite that may die: refusals are retried until it is no longer awake."""

import socket

import trio

from bentpipe.daemon.edge.dial import dial
from bentpipe.daemon.model import Address

DEADLINE_S = 10.0


async def test_a_satellite_that_begins_to_listen_is_reached() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        looks = 0

        def is_awake() -> bool:
            nonlocal looks
            looks += 1
            if looks == 2:
                server.listen()
            return True

        with trio.fail_after(DEADLINE_S):
            target = await dial(Address(*server.getsockname()), None, None, is_awake)
        assert looks == 2
        assert target is not None
        target.close()


async def test_a_satellite_that_died_is_given_up_at_once() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        looks = iter((True, True, False))
        with trio.fail_after(DEADLINE_S):
            assert await dial(Address(*server.getsockname()), None, None, lambda: next(looks)) is None
