"""The registrar against a store that counts, fails and is slow: what heartbeats cost, and what a failure leaves."""

import dataclasses
import ipaddress
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from bentpipe.config.registration import RegistrationSection
from bentpipe.daemon.errors import NoSuchSatellite, NotPermitted, StoreError
from bentpipe.daemon.fleet import satellite
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.registrar import REFRESH_S, Registrar, Wish
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.model import Address, MachineId, SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.providers.registered import RegisteredProvider
from bentpipe.daemon.registry.registered import RegisteredSatellite, RegistrationWish, place

OFFLINE_S, FORGET_S = 45.0, 600.0
KEY = SatelliteKey("acme", "own")
HERE = ipaddress.ip_address("10.0.0.1")
S = SatelliteState


class Rows:
    """`RegisteredStore` in memory."""

    def __init__(self) -> None:
        self.rows: dict[SatelliteKey, RegisteredSatellite] = {}
        self.reads = self.beats = 0
        self.fails = False

    def _check(self) -> None:
        if self.fails:
            raise StoreError("no answer")

    async def satellites(self) -> tuple[RegisteredSatellite, ...]:
        await trio.lowlevel.checkpoint()
        self._check()
        self.reads += 1
        return tuple(self.rows.values())

    async def register(self, wish: RegistrationWish) -> RegisteredSatellite:
        await trio.lowlevel.checkpoint()
        self._check()
        placing = place(self.rows.values(), wish)
        self.rows[placing.satellite.key] = placing.satellite
        return placing.satellite

    async def beat(self, satellite: RegisteredSatellite, beat_us: int) -> bool:
        await trio.lowlevel.checkpoint()
        self._check()
        self.beats += 1
        known = self.rows.get(satellite.key)
        if known is None or known.token_hash != satellite.token_hash:
            return False
        self.rows[satellite.key] = dataclasses.replace(known, beat_us=beat_us)
        return True

    async def remove(self, satellite: RegisteredSatellite) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        self.rows.pop(satellite.key, None)

    async def aclose(self) -> None: ...


class Parts:
    """`RegisteredParts` with a provider alone."""

    def __init__(self, provider: RegisteredProvider) -> None:
        self._provider = provider
        self.ended: list[SatelliteKey] = []

    def check_authority(self, root_ca: str) -> None: ...

    def register(self, satellite: RegisteredSatellite, *, age_s: float) -> None:
        self._provider.heard(
            _machine(satellite.key), satellite.address, satellite.beat_us, proven=bool(satellite.root_ca), age_s=age_s
        )

    def end_use(self, key: SatelliteKey) -> None:
        self.ended.append(key)

    def forget(self, key: SatelliteKey) -> None:
        self._provider.forget(_machine(key))


def _machine(key: SatelliteKey) -> MachineId:
    return machine_id_of(key)


class Bed:
    def __init__(self, store: Rows | None = None, *, skew_s: float = 0.0) -> None:
        self.store = store or Rows()
        provider = RegisteredProvider(OFFLINE_S)
        self.parts = Parts(provider)
        self.moves: list[tuple[SatelliteState, SatelliteState]] = []
        self.fleet = Fleet([], FleetContext(provider, self._observe), max_held=10)
        section = RegistrationSection.model_validate(
            {"networks": ["10.0.0.0/8"], "plaintext": True, "offline_after": OFFLINE_S, "forget_after": FORGET_S}
        )
        self.registrar = Registrar(
            *(self.fleet, self.store, self.parts, section, ()),
            most_per_org=5,
            wall=lambda: 1e9 + trio.current_time() + skew_s,
        )

    def _observe(self, transition: Transition) -> None:
        self.moves.append((transition.before, transition.after))

    def state(self) -> SatelliteState | None:
        found = self.fleet.find(KEY)
        return found.shown_state if found is not None else None

    async def register(self, *, port: int = 8372, token: str = "") -> str:
        wish = Wish(KEY, "", port, "linux/amd64", "", "", token)
        return await self.registrar.register(wish, "ada", HERE)

    async def beat(self, token: str) -> None:
        await self.registrar.heartbeat(token, lambda key: key == KEY, HERE)

    async def run(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.fleet.run)
        await nursery.start(self.registrar.run_registrar)


@pytest.fixture(autouse=True)
def every_port_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(address: Address, tell: Callable[[str, bool], None]) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(satellite, "wait_listening_seldom", at_once)


@pytest.fixture
async def bed(nursery: trio.Nursery) -> AsyncIterator[Bed]:
    made = Bed()
    await made.run(nursery)
    yield made
    nursery.cancel_scope.cancel()


async def test_a_flood_of_heartbeats_is_written_once_a_second(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    token = await bed.register()
    await trio.sleep(1.5)
    before = bed.store.beats
    for _ in range(1000):
        await bed.beat(token)
    assert bed.store.beats == before + 1


async def test_unknown_tokens_cost_no_read_of_the_store(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    await trio.sleep(REFRESH_S / 2)
    before = bed.store.reads
    async with trio.open_nursery() as nursery:

        async def guess(number: int) -> None:
            with pytest.raises(NoSuchSatellite):
                await bed.beat(f"bpr_{number}")

        for number in range(1000):
            nursery.start_soon(guess, number)
    assert bed.store.reads <= before + 1


async def test_while_the_store_is_gone_a_heartbeat_counts_where_it_comes(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    token = await bed.register()
    bed.store.fails = True
    for _ in range(5):
        await trio.sleep(OFFLINE_S / 2)
        with pytest.raises(StoreError):
            await bed.beat(token)
        assert bed.state() is not S.OFFLINE
    await trio.sleep(OFFLINE_S + 1)
    assert bed.state() is S.OFFLINE
    bed.store.fails = False
    await bed.beat(token)
    await trio.sleep(REFRESH_S * 2)
    assert bed.state() is not S.OFFLINE


async def test_hosts_whose_clocks_differ_believe_each_others_heartbeats(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = Rows()
    ahead, behind = Bed(store, skew_s=300.0), Bed(store)
    for host in (ahead, behind):
        await host.run(nursery)
    token = await ahead.register()
    for teller in (ahead, behind, ahead, behind, behind, behind):
        await trio.sleep(OFFLINE_S / 2)
        await teller.beat(token)
        await trio.sleep(REFRESH_S * 2)
        assert S.OFFLINE not in (ahead.state(), behind.state())
    await trio.sleep(OFFLINE_S + 1)
    assert (ahead.state(), behind.state()) == (S.OFFLINE, S.OFFLINE)
    nursery.cancel_scope.cancel()


async def test_an_offline_satellite_is_told_as_such_and_is_forgotten_in_the_end(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    await bed.register()
    await trio.sleep(OFFLINE_S + 2)
    assert bed.moves[-1][1] is S.OFFLINE
    assert all(S.FAILED not in move for move in bed.moves)
    await trio.sleep(FORGET_S)
    assert (bed.state(), bed.store.rows) == (None, {})


async def test_its_address_moves_with_its_token_alone(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    token = await bed.register()
    assert await bed.register(port=9000, token=token) == token
    assert bed.store.rows[KEY].address.port == 9000
    assert bed.fleet.find(KEY) is not None
    with pytest.raises(NotPermitted, match="the call comes from"):
        await bed.registrar.heartbeat(token, lambda key: True, ipaddress.ip_address("10.0.0.2"))


async def test_what_another_host_has_removed_is_gone_here(bed: Bed, autojump_clock: trio.testing.MockClock) -> None:
    token = await bed.register()
    del bed.store.rows[KEY]
    await trio.sleep(REFRESH_S * 2)
    assert (bed.state(), bed.parts.ended) == (None, [KEY])
    with pytest.raises(NoSuchSatellite):
        await bed.beat(token)


async def test_a_registration_that_is_cut_short_leaves_nothing_half_done(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    for turns in range(12):
        with trio.CancelScope() as scope:

            async def cancel(scope: trio.CancelScope = scope, turns: int = turns) -> None:
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                await bed.register()
        await trio.sleep(REFRESH_S * 2)
        assert (bed.fleet.find(KEY) is not None) == (KEY in bed.store.rows)
    token = await bed.register()
    await bed.beat(token)
