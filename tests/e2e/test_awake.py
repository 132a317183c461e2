"""Connections to a satellite that is awake: spliced at once, or held while it cannot be reached; no lease is left behind."""

from typing import Any

import pytest
import trio

from beds.hosts.in_process import DEADLINE_S, PLAIN, TOKEN, counted
from beds.peers.clients import GrpcioClient
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.edge import splicing
from bentpipe.daemon.edge.channel import Channel
from bentpipe.daemon.edge.dial import dial_at_once
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.serve import Daemon

KEY = SatelliteKey("acme", "sat")


def echo(port: int) -> bytes:
    client = GrpcioClient(
        port, None, (("satellite_name", KEY.name), ("satellite_org", KEY.org), ("satellite_token", TOKEN))
    )
    try:
        return client.unary("Echo", b"awake")
    finally:
        client.close()


async def no_lease_is_left(daemon: Daemon) -> None:
    with trio.fail_after(DEADLINE_S):
        while daemon.fleet.get(KEY).leases:
            await trio.sleep(0.01)


@pytest.mark.parametrize("reached_at_once", [True, False])
async def test_calls_to_an_awake_satellite(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, reached_at_once: bool
) -> None:
    attempts: list[Channel | None] = []
    leases: list[int] = []

    async def first_attempt(*arguments: Any) -> Channel | None:
        attempts.append(await dial_at_once(*arguments) if reached_at_once else None)
        leases.append(daemon.fleet.get(KEY).leases)
        return attempts[-1]

    monkeypatch.setattr(splicing, "dial_at_once", first_attempt)
    port = daemon.addresses[PLAIN][1]
    assert await trio.to_thread.run_sync(echo, port) == b"awake"
    assert [transport is not None for transport in attempts] == [reached_at_once]  # it slept: held, and then dialled
    await no_lease_is_left(daemon)
    attempts.clear()
    leases.clear()
    for _ in range(3):
        assert await trio.to_thread.run_sync(echo, port) == b"awake"
        await no_lease_is_left(daemon)
    if reached_at_once:
        assert [transport is not None for transport in attempts] == [True] * 3
        assert leases == [1] * 3
    else:  # each is held after its first attempt, and has a second lease before it gives up its first
        assert attempts == [None] * 6
        assert leases == [1, 2] * 3
    await counted(daemon, Outcome.SPLICED, 4)
    assert daemon.fleet.get(KEY).waiting == 0
