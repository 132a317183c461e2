"""One task notices for all satellites that boot that they listen: by few questions, and each for its own processes."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from bentpipe.daemon.model import Address
from bentpipe.daemon.providers.process.listening import Suspects
from bentpipe.daemon.providers.process.port_watch import FOUND_A_TURN, PortWatch

HERE = f"127.79.{os.getpid() % 251}.{os.getpid() % 241 + 1}"
"""No neighbour of this test listens there."""
DEADLINE_S = 30.0
OURS, NOBODYS = Suspects(None, lambda: [os.getpid()]), Suspects(None, list)


@pytest.fixture
async def ports() -> AsyncIterator[PortWatch]:
    watch = PortWatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run_port_watch)
        with trio.fail_after(DEADLINE_S):
            yield watch
        nursery.cancel_scope.cancel()
    watch.listeners.close()


async def test_each_is_told_when_its_own_process_listens(ports: PortWatch) -> None:
    count = 2 * FOUND_A_TURN + 1
    with contextlib.ExitStack() as stack:
        servers, known = [stack.enter_context(socket.socket()) for _ in range(count)], set[str]()
        for server in servers:
            server.bind((HERE, 0))
        addresses = [Address(*server.getsockname()) for server in servers]
        events = [stack.enter_context(ports.expect(address, OURS, known)) for address in addresses]
        others = stack.enter_context(ports.expect(addresses[0], NOBODYS, set()))
        await trio.sleep(0.05)
        assert not any(event.is_set() for event in events)
        for server in servers:
            server.listen()
        for event in events:
            await event.wait()
        assert not others.is_set(), "another process listens there"


async def test_a_question_that_fails_fails_for_one(ports: PortWatch) -> None:
    def fail() -> list[int]:
        raise RuntimeError

    with socket.create_server((HERE, 0)) as server:
        address = Address(*server.getsockname())
        with ports.expect(address, Suspects(None, fail), set()) as broken, ports.expect(address, OURS, set()) as sound:
            await sound.wait()
            assert not broken.is_set()


async def test_it_asks_nothing_while_nothing_boots(ports: PortWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def is_listening(*_: object) -> bool:
        nonlocal asked
        asked += 1
        return False

    monkeypatch.setattr(ports.listeners, "is_listening", is_listening)
    await trio.sleep(0.05)
    assert asked == 0
    with ports.expect(Address(HERE, 1), OURS, set()):
        while not asked:
            await trio.sleep(0.001)
    await trio.sleep(0.03)
    before = asked
    await trio.sleep(0.05)
    assert asked == before
