"""A satellite's process may have ended before the task that has started it learns that it runs."""

from collections.abc import Iterable

import pytest

from bentpipe.daemon.keeper.protocol import Field, Kind, Message, Tag, decode, encode
from bentpipe.daemon.providers.process.keeper import MOST_EXITS, KeeperClient
from bentpipe.daemon.providers.process.kept import KeptProcess
from bentpipe.daemon.providers.process.place import KeeperPlace


def message(kind: Kind, number: int, fields: Iterable[Field]) -> Message:
    return decode(encode(kind, number, fields))


def identity(name: str) -> list[Field]:
    return [(Tag.NAME, name), (Tag.BIRTH, f"birth of {name}")]


async def spawned(client: KeeperClient, monkeypatch: pytest.MonkeyPatch, first: str) -> KeptProcess:
    """The answer to a SPAWN, after the word that `first` has ended."""

    async def call(kind: Kind, fields: Iterable[Field] = (), deadline_s: float | None = None) -> Message:
        client._told(message(Kind.EXITED, 0, [*identity(first), (Tag.STATUS, 3)]))
        return message(Kind.SPAWN, 1, [*identity("one"), (Tag.PID, 4711)])

    monkeypatch.setattr(client, "call", call)
    return await client.spawn([])


async def test_an_exit_that_comes_first_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await spawned(KeeperClient(KeeperPlace()), monkeypatch, "one")
    assert found.exited.is_set()
    assert found.status == 3


async def test_the_exit_of_another_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await spawned(KeeperClient(KeeperPlace()), monkeypatch, "two")
    assert not found.exited.is_set()


async def test_exits_that_nobody_asks_for_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    client = KeeperClient(KeeperPlace())
    for number in range(MOST_EXITS):
        client._told(message(Kind.EXITED, 0, [*identity(f"s{number}"), (Tag.STATUS, 0)]))
    found = await spawned(client, monkeypatch, "one")
    assert found.exited.is_set()
    assert len(client._exits) < MOST_EXITS
