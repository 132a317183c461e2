"""The text of `bentpipe.daemon.coordination.contract` as tests.

`CoordinationContract` is what one host sees, of any coordination: its fixture is `coordination`. `SharedContract` is
about several hosts on the same rows: its fixture is `rows`. Hosts' clocks stand still but where a test moves them, so
that a lease ends when the test says so; only polling takes real time, some hundredths of a second.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from beds.contracts.ledger import A, B
from bentpipe.daemon.coordination.contract import Coordination, InUse
from bentpipe.daemon.coordination.rows import Rows
from bentpipe.daemon.coordination.shared import SharedCoordination
from bentpipe.daemon.coordination.turn import WINDOW, SharedTurn
from bentpipe.daemon.errors import StoreError

LEASE_S = 0.5
"""Times are sums of powers of two: clocks that tests move then add up exactly."""
EXPIRY_S = 0.75
PATIENCE_S = 30


async def nothing() -> None:
    await trio.lowlevel.checkpoint()


def unused() -> bool:
    return False


class CutRows:
    """Rows behind a wire that the test can cut: before a step, or after it, so that only its answer is lost."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.cut = self.deaf = False

    def __getattr__(self, name: str) -> Callable[..., Any]:  # type: ignore[explicit-any]  # any step of Rows
        step = getattr(self._rows, name)

        async def call(*arguments: object, **named: object) -> object:
            if self.cut:
                raise StoreError("the wire is cut")
            result = await step(*arguments, **named)
            if self.deaf:
                raise StoreError("no answer")
            return result

        return call


class Host:
    """One edge host of a test."""

    def __init__(self, rows: Rows, name: str, survives_s: float = 0.0) -> None:
        self.wire = CutRows(rows)
        self.time = 1000.0
        self.looks = 0
        self.scope = trio.CancelScope()
        self.coordination = SharedCoordination(
            *(self.wire, name),
            lease_s=LEASE_S,
            host_expiry_s=EXPIRY_S,
            clock=lambda: self.time,
            survives_s=survives_s,
        )

    async def enter(self) -> None:
        async def look() -> None:
            self.looks += 1

        await self.coordination.enter(A, look)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await self.coordination.run(task_status=task_status)

    async def wait(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await trio.sleep(0.01)


@contextlib.asynccontextmanager
async def hosts(rows: Rows, *names: str, survives_s: float = 0.0) -> AsyncIterator[list[Host]]:
    async with trio.open_nursery() as nursery:
        found = [Host(rows, name, survives_s) for name in names]
        for host in found:
            await nursery.start(host.run)
        with trio.fail_after(PATIENCE_S):
            yield found
        nursery.cancel_scope.cancel()


class CoordinationContract:
    async def test_a_satellite_is_used_and_put_to_sleep(self, coordination: Coordination) -> None:
        for _ in range(2):
            if not coordination.is_entered(A):
                await coordination.enter(A, nothing)
            assert coordination.is_entered(A)
            coordination.leave_nowait(A)
            async with coordination.acting(A) as turn:
                assert turn.is_ours()
                await turn.close(unused)
                assert turn.is_ours()

    async def test_no_machine_sleeps_while_a_client_is_here(self, coordination: Coordination) -> None:
        await coordination.enter(A, nothing)
        async with coordination.acting(A) as turn:
            with pytest.raises(InUse, match="somebody came"):
                await turn.close(lambda: True)
            await turn.close(unused)
        async with coordination.acting(B) as turn:
            await turn.close(unused)


async def refuses(host: Host) -> bool:
    """Whether it may not put the satellite to sleep, since another host uses it."""
    async with host.coordination.acting(A) as turn:
        try:
            await turn.close(unused)
        except InUse:
            return True
    return False


class SharedContract:
    @pytest.mark.parametrize("killed", [False, True])
    async def test_connections_that_outlive_their_process_are_use_until_its_successor_has_entered(
        self, rows: Rows, killed: bool
    ) -> None:
        async with hosts(rows, "other") as (other,), hosts(rows, "one", survives_s=8 * EXPIRY_S) as (one,):
            await one.enter()
            stays = one.coordination.stays
            one.wire.cut = killed
            one.scope.cancel()  # it ends: nothing is given back
            assert await refuses(other)
            for _ in range(6):  # longer than any host's expiry
                other.time += EXPIRY_S
                assert await refuses(other)
            async with hosts(rows, "one", survives_s=8 * EXPIRY_S) as (successor,):
                await successor.enter()
                successor.coordination.succeed(stays)
                own = successor.coordination.stays[0]
                while (await rows.incarnations()).keys() & {*stays}:
                    await trio.sleep(0.01)
                assert await refuses(other)
                assert own in (await rows.read(A)).entered
                successor.coordination.leave_nowait(A)
                while await refuses(other):
                    await trio.sleep(0.01)
                successor.coordination.drained()

    async def test_connections_that_outlive_their_process_are_not_waited_for_for_ever(self, rows: Rows) -> None:
        async with hosts(rows, "other") as (other,), hosts(rows, "one", survives_s=8 * EXPIRY_S) as (one,):
            await one.enter()
            one.wire.cut = True
            one.scope.cancel()
            assert await refuses(other)
            other.time += 9 * EXPIRY_S
            assert not await refuses(other)

    async def test_a_process_that_has_drained_gives_everything_back(self, rows: Rows) -> None:
        async with hosts(rows, "other") as (other,):
            async with hosts(rows, "one", survives_s=8 * EXPIRY_S) as (one,):
                await one.enter()
                one.coordination.drained()
            assert not await refuses(other)

    async def test_what_a_successor_cannot_enter_yet_is_not_given_back(self, rows: Rows) -> None:
        async with hosts(rows, "other") as (other,), hosts(rows, "one", survives_s=8 * EXPIRY_S) as (one,):
            await one.enter()
            stays = one.coordination.stays
            one.scope.cancel()
            async with hosts(rows, "one", survives_s=8 * EXPIRY_S) as (successor,):
                successor.wire.cut = True
                await successor.enter()
                successor.coordination.succeed(stays)
                await trio.sleep(0.1)
                assert await refuses(other)
                successor.wire.cut = False
                while (await rows.incarnations()).keys() & {*stays}:
                    await trio.sleep(0.01)
                assert await refuses(other)
                successor.coordination.drained()

    async def test_a_name_is_announced_before_anything_is_entered_by_it(self, rows: Rows) -> None:
        announced: list[tuple[str, ...]] = []
        host = Host(rows, "one", survives_s=EXPIRY_S)

        async def announce() -> None:
            assert host.coordination.stays[0] not in await rows.incarnations()
            announced.append(host.coordination.stays)

        host.coordination.announce_by(announce)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE_S):
                await nursery.start(host.run)
                await host.enter()
                host.time += EXPIRY_S
                await host.enter()
                nursery.cancel_scope.cancel()
        assert [len(each) for each in announced] == [1, 2]
        assert announced[0][0] in announced[1]

    async def test_a_machine_sleeps_only_when_no_host_uses_it(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two") as (one, two):
            await one.enter()
            await two.enter()
            async with one.coordination.acting(A) as turn:
                with pytest.raises(InUse, match="in use at two"):
                    await turn.close(unused)
            assert not one.coordination.is_entered(A)
            async with two.coordination.acting(A) as turn:
                await turn.close(unused)
                assert turn.is_ours()
            assert not two.coordination.is_entered(A)

    async def test_who_leaves_is_soon_forgotten_and_may_come_back(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two") as (one, two):
            await one.enter()
            one.coordination.leave_nowait(A)
            one.coordination.leave_nowait(A)
            await one.enter()
            assert one.coordination.is_entered(A)
            assert one.looks == 2
            one.coordination.leave_nowait(A)
            with trio.fail_after(PATIENCE_S):
                while (await rows.read(A)).entered:
                    await trio.sleep(0.01)
            async with two.coordination.acting(A) as turn:
                await turn.close(unused)

    async def test_entering_waits_for_a_sleep_and_looks_after_it(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two") as (one, two), trio.open_nursery() as nursery:
            async with one.coordination.acting(A) as turn:
                await turn.close(unused)
                nursery.start_soon(two.enter)
                nursery.start_soon(one.enter)
                await trio.sleep(5 * LEASE_S / 20)
                assert not two.coordination.is_entered(A)
                assert two.looks == one.looks == 0

            def both_are_in() -> bool:
                # The clocks run on: a store that answers slower than a lease leaves the row closed until the lease is over.
                one.time += 0.01
                two.time += 0.01
                return two.coordination.is_entered(A) and one.coordination.is_entered(A)

            await two.wait(both_are_in)
            assert two.looks == one.looks == 1

    async def test_many_who_enter_are_one_step_and_one_look(self, rows: Rows) -> None:
        async with hosts(rows, "one") as (one,):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(one.enter)
            assert one.looks == 1

    async def test_one_turn_at_a_time(self, rows: Rows) -> None:
        acting = most = 0
        epochs: list[int] = []
        async with hosts(rows, "one", "two", "three") as found:

            async def act(host: Host) -> None:
                nonlocal acting, most
                for _ in range(3):
                    async with host.coordination.acting(A) as turn:
                        acting += 1
                        most = max(most, acting)
                        assert turn.is_ours()
                        await trio.sleep(0.005)
                        epochs.append((await rows.read(A)).epoch)
                        acting -= 1

            async with trio.open_nursery() as nursery:
                for host in found:
                    nursery.start_soon(act, host)
        assert most == 1
        assert epochs == list(range(1, 10))

    async def test_a_turn_that_is_renewed_stays(self, rows: Rows) -> None:
        async with (
            hosts(rows, "one", "two") as (one, two),
            trio.open_nursery() as nursery,
            one.coordination.acting(A) as turn,
        ):

            async def act() -> None:
                async with two.coordination.acting(A):
                    assert not inside

            inside = True
            nursery.start_soon(act)
            before = (await rows.read(A)).version
            for _ in range(3):
                one.time += 0.9 * WINDOW * LEASE_S
                two.time += 0.9 * WINDOW * LEASE_S
                with trio.fail_after(PATIENCE_S):
                    while (await rows.read(A)).version == before:
                        await trio.sleep(0.01)
                before = (await rows.read(A)).version
                await one.wait(turn.is_ours)
            inside = False

    async def test_a_dead_owners_turn_is_taken_over(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two") as (one, two), trio.open_nursery() as nursery:
            taken = trio.Event()

            async def take() -> None:
                async with two.coordination.acting(A):
                    taken.set()

            async with one.coordination.acting(A) as turn:
                await turn.close(unused)
                one.wire.cut = True
                nursery.start_soon(take)
                await trio.sleep(5 * LEASE_S / 20)
                assert not taken.is_set()
                two.time += LEASE_S
                await taken.wait()
            row = await rows.read(A)
            assert (row.epoch, row.closing) == (2, False)
            await two.enter()
            assert two.coordination.is_entered(A)

    async def test_an_owner_that_was_paused_or_robbed_acts_no_more(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two") as (one, two):
            async with one.coordination.acting(A) as turn:
                await turn.close(unused)
                one.wire.cut = True
                one.time += WINDOW * LEASE_S
                assert not turn.is_ours()
                one.wire.cut = False
            async with one.coordination.acting(A) as turn:
                stolen = False
                while not stolen:  # it may be renewed in between
                    seen = (await rows.read(A)).version
                    stolen = (await rows.take(A, owner="thief/1", seen=seen, version="stolen")).done
                with pytest.raises(InUse, match="acts on"):
                    await turn.close(unused)
                assert not turn.is_ours()
            assert (await rows.read(A)).owner == "thief/1"
            await rows.release(A, seen="stolen")
            async with two.coordination.acting(A) as turn:
                assert turn.is_ours()

    async def test_what_queues_is_taken_back_when_the_turn_is_lost_and_not_before(self, rows: Rows) -> None:
        async with hosts(rows, "one") as (one,), one.coordination.acting(A) as turn:
            with turn.while_ours() as scope:
                before = (await rows.read(A)).version
                for _ in range(3):  # renewed, it goes on
                    with trio.fail_after(PATIENCE_S):
                        while (await rows.read(A)).version == before:
                            await trio.sleep(0.01)
                    before = (await rows.read(A)).version
                one.wire.cut = True
                await trio.sleep_forever()
            assert scope.cancelled_caught
            one.wire.cut = False

    async def test_a_lost_answer_does_not_lose_the_turn(self, rows: Rows) -> None:
        async with hosts(rows, "one") as (one,):
            async with one.coordination.acting(A) as turn:
                one.wire.deaf = True
                with pytest.raises(StoreError, match="no answer"):
                    await turn.close(unused)
                one.wire.deaf = False
                await turn.close(unused)
                assert turn.is_ours()
            assert (await rows.read(A)).owner == ""

    async def test_several_lost_answers_do_not_lose_the_turn(self, rows: Rows) -> None:
        async with hosts(rows, "one") as (one,):
            async with one.coordination.acting(A) as turn:
                assert isinstance(turn, SharedTurn)
                one.wire.deaf = True
                for _ in range(3):
                    with pytest.raises(StoreError, match="no answer"):
                        await turn.renew()
                one.wire.deaf = False
                await turn.close(unused)
                assert not turn.over
                one.wire.deaf = True
                for _ in range(3):
                    with pytest.raises(StoreError, match="no answer"):
                        await turn.renew()
                one.wire.deaf = False
            assert (await rows.read(A)).owner == ""

    async def test_a_dead_host_keeps_nothing_awake_and_a_live_one_does(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two", "three") as (one, two, three):
            await one.enter()
            await two.enter()
            one.wire.cut = True
            two.coordination.leave_nowait(A)
            await two.wait(lambda: not two.coordination.is_entered(A))
            async with three.coordination.acting(A) as turn:
                with pytest.raises(InUse, match="in use at one"):
                    await turn.close(unused)
            known = await rows.incarnations()
            with trio.fail_after(PATIENCE_S):
                while not all(
                    seen != known[incarnation]
                    for incarnation, seen in (await rows.incarnations()).items()
                    if not incarnation.startswith("one")
                ):
                    await trio.sleep(0.01)
            three.time += EXPIRY_S
            async with three.coordination.acting(A) as turn:
                await turn.close(unused)
            assert {incarnation.partition("/")[0] for incarnation in await rows.incarnations()} == {"two", "three"}

    async def test_who_was_cut_off_for_too_long_enters_again(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two") as (one, two):
            await one.enter()
            one.wire.cut = True
            one.time += WINDOW * EXPIRY_S
            assert not one.coordination.is_entered(A)
            one.wire.cut = False
            await one.enter()
            assert one.coordination.is_registered(A)
            assert one.looks == 2
            async with two.coordination.acting(A) as turn:
                with pytest.raises(InUse, match="in use at one"):
                    await turn.close(unused)
            one.coordination.leave_nowait(A)
            with trio.fail_after(PATIENCE_S):
                while (await rows.read(A)).entered - {s for s in await rows.incarnations() if s.startswith("one")}:
                    async with two.coordination.acting(A) as turn:
                        with contextlib.suppress(InUse):
                            await turn.close(unused)

    async def test_without_the_store_nobody_sleeps_and_nobody_is_turned_away(self, rows: Rows) -> None:
        async with hosts(rows, "one") as (one,):
            await one.enter()
            one.wire.cut = True
            assert one.coordination.is_entered(A)
            await one.coordination.enter(B, nothing)
            assert one.coordination.is_entered(B)
            assert not one.coordination.is_registered(B)
            with pytest.raises(StoreError):
                async with one.coordination.acting(A):
                    raise AssertionError("a turn without the store")
            one.wire.cut = False
            await one.wait(lambda: one.coordination.is_registered(B))
            assert one.coordination.is_registered(A)

    async def test_without_the_store_a_turn_cannot_be_closed(self, rows: Rows) -> None:
        async with hosts(rows, "one") as (one,), one.coordination.acting(A) as turn:
            one.wire.cut = True
            with pytest.raises(StoreError, match="cut"):
                await turn.close(unused)

    async def test_who_is_cancelled_while_entering_leaves_nothing(self, rows: Rows) -> None:
        async with hosts(rows, "one", "two") as (one, two):
            async with two.coordination.acting(A) as turn:
                await turn.close(unused)
                with trio.move_on_after(3 * LEASE_S / 20):
                    await one.enter()

            async def look() -> None:
                raise ValueError("no machine")

            with pytest.raises(ValueError, match="no machine"):
                await one.coordination.enter(A, look)
            assert not one.coordination.is_entered(A)
            with trio.fail_after(PATIENCE_S):
                while (await rows.read(A)).entered:
                    await trio.sleep(0.01)

    async def test_a_good_end_gives_everything_back(self, rows: Rows) -> None:
        async with hosts(rows, "one") as (one,):
            await one.enter()
            assert (await rows.read(A)).entered
        assert not (await rows.read(A)).entered
        assert await rows.incarnations() == {}
