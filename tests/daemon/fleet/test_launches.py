"""One token a machine: over repeated calls, restarts and hosts, and another one after a loss."""

from pathlib import Path

import pytest

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.fleet.launches import PERIOD_S, SETTLED_S, LaunchTokens
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.registry.sqlite import SqliteRegistry

KEY = SatelliteKey("acme", "m")


class Daemons:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 1e9
        self.registry = SqliteRegistry(path)

    def launches(self) -> LaunchTokens:
        return LaunchTokens(KEY, self.registry, wall=lambda: self.now_s)


@pytest.fixture
def daemons(tmp_path: Path) -> Daemons:
    return Daemons(tmp_path / "ledger.sqlite")


async def test_who_repeats_a_launch_means_the_same_machine(daemons: Daemons) -> None:
    one, two = daemons.launches(), daemons.launches()
    token = await one.begin("a")
    await one.done(MachineId("acme.m"))
    assert len(token) == 64
    assert await one.begin("a") == token
    daemons.now_s += SETTLED_S / 2
    assert await two.begin("b") == await daemons.launches().begin("c") == token
    (registration,) = await daemons.registry.satellites()
    assert (registration.generation, registration.machine_id) == (1, "acme.m")
    await daemons.registry.aclose()


async def test_after_a_loss_all_who_noticed_it_mean_the_next(daemons: Daemons) -> None:
    one, two = daemons.launches(), daemons.launches()
    token = await one.begin("a")
    assert await two.begin("x") == token
    following = await one.begin("b")
    assert following != token
    assert await two.begin("y") == following
    assert await one.begin("c") != following
    await daemons.registry.aclose()


async def test_a_daemon_that_comes_when_nothing_can_be_under_way_means_another(daemons: Daemons) -> None:
    token = await daemons.launches().begin("a")
    daemons.now_s += SETTLED_S
    assert await daemons.launches().begin("a") != token
    await daemons.registry.aclose()


async def test_without_the_registry_there_is_no_launch(daemons: Daemons) -> None:
    daemons.path.mkdir()
    with pytest.raises(StoreError):
        await daemons.launches().begin("a")
    await daemons.launches().done(MachineId("acme.m"))
    await daemons.registry.aclose()


async def test_without_a_registry_the_satellites_own_token_counts() -> None:
    now_s = 10 * PERIOD_S
    tokens = LaunchTokens(KEY, wall=lambda: now_s)
    first = tokens.asked(0)
    assert await tokens.begin(first) == first
    await tokens.done(MachineId("acme.m"))
    now_s += PERIOD_S
    assert tokens.asked(0) == first  # however late the call is repeated
    assert tokens.asked(1) != first
    begun_again = LaunchTokens(KEY, wall=lambda: 10.5 * PERIOD_S)
    assert begun_again.asked(0) == first
    assert LaunchTokens(KEY, wall=lambda: 11 * PERIOD_S).asked(0) != first
