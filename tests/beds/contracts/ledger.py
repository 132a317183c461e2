"""The text of `bentpipe.daemon.ledger.contract` as tests, for every ledger.

A test module subclasses `LedgerContract` and gives a fixture `shelf`: `shelf(name)` opens the ledger of that name as a
new run of the daemon would; the same name twice is the same ledger.
"""

import itertools
from collections.abc import Callable, Iterable

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, given, settings

from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.ledger.contract import (
    ENDED_BADLY,
    NOT_CONFIGURED,
    STOPPED,
    Interval,
    Ledger,
    Stamp,
    StampedTransition,
)
from bentpipe.daemon.model import (
    NO_FACTS,
    BootPhase,
    Peaks,
    Resume,
    SatelliteKey,
    SatelliteState,
    StateFacts,
    Suspicion,
    Transition,
    Waits,
    WakePhase,
)

FULL = StateFacts(
    ((WakePhase.START, 1.5), (WakePhase.LISTEN, 0.25)),
    Waits(2, 9.0, 5.0),
    Resume.COLD,
    3,
    Peaks(99.5, 12.0, 0.25),
    2,
    Suspicion(80, ("it burns", "it is flat")),
    ((BootPhase.KERNEL, 1.25), (BootPhase.BUILDKIT, 9.5)),
)
"""Each fact differs from its default."""

S = SatelliteState
A, B, C = (SatelliteKey("acme", name) for name in "abc")
ALWAYS = (-(1 << 60), 1 << 60)
START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000

Shelf = Callable[[str], Ledger]


class Clock:
    """Two clocks that the test moves; only the wall clock can be stepped."""

    def __init__(self) -> None:
        self.wall_us, self.boot_us, self.boots = START_US, 5 * SECOND_US, 0

    def now(self) -> Stamp:
        return Stamp(self.wall_us, self.boot_us, f"boot-{self.boots}")

    def advance(self, seconds: float) -> None:
        self.wall_us += int(seconds * SECOND_US)
        self.boot_us += int(seconds * SECOND_US)

    def step(self, seconds: float) -> None:
        self.wall_us += int(seconds * SECOND_US)

    def reboot(self) -> None:
        self.boots += 1
        self.boot_us = SECOND_US


class Writer:
    """A run of the daemon: numbers its transitions."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.ledger, self.clock = ledger, clock
        self.serials = itertools.count(1)

    def change(
        self,
        key: SatelliteKey,
        state: SatelliteState,
        cause: str = "test",
        *,
        who: str = "",
        facts: StateFacts = NO_FACTS,
    ) -> StampedTransition:
        told = Transition(key, S.UNKNOWN, state, 0.0, cause, who, facts)
        return StampedTransition(next(self.serials), self.clock.now(), told)

    async def move(self, key: SatelliteKey, state: SatelliteState, cause: str = "test") -> None:
        await self.ledger.record([self.change(key, state, cause)])


def seconds(intervals: Iterable[Interval]) -> list[tuple[str, float]]:
    return [(interval.state.value, interval.elapsed_us / SECOND_US) for interval in intervals]


def check_laws(intervals: list[Interval], now_us: int | None = None) -> None:
    """No overlaps, no holes, at most one open interval and it is the last, nothing in the future."""
    for _, group in itertools.groupby(intervals, key=lambda interval: interval.key):
        chain = list(group)
        for before, after in itertools.pairwise(chain):
            assert before.to_us == after.from_us
            assert not before.is_open
        for interval in chain:
            assert interval.from_us <= interval.to_us
            assert interval.elapsed_us >= 0
            assert now_us is None or interval.to_us <= now_us
        assert chain[-1].is_open
    keys = [key for key, _ in itertools.groupby(intervals, key=lambda interval: interval.key)]
    assert len(keys) == len(set(keys))


LedgerMove = tuple[object, ...]
"""What happens, and its arguments."""
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("move"), st.sampled_from([A, B, C]), st.sampled_from(SatelliteState)),
        st.tuples(st.just("advance"), st.sampled_from([0.001, 1.0, 3600.0])),
        st.tuples(st.just("step"), st.sampled_from([-1e9, -3600.0, -0.01, 0.01, 3600.0, 1e9])),
        st.tuples(st.sampled_from(["beat", "crash", "restart", "reboot", "forget"])),
    ),
    max_size=30,
)


class LedgerContract:
    async def begun(self, ledger: Ledger, clock: Clock, *keys: SatelliteKey) -> Writer:
        await ledger.begin(keys, clock.now())
        return Writer(ledger, clock)

    async def test_a_day_in_the_life(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("day"), clock, A)
        clock.advance(1)
        await writer.move(A, S.SLEEP)
        clock.advance(100)
        await writer.ledger.record([writer.change(A, S.STARTING, "a client came", who="ci")])
        clock.advance(12)
        phases = ((WakePhase.START, 2.0), (WakePhase.BOOT, 9.0), (WakePhase.LISTEN, 1.0))
        woken = StateFacts(phases, Waits(3, 30.0, 12.0))
        await writer.ledger.record([writer.change(A, S.OPERATIONAL, "ready", facts=woken)])
        clock.advance(50)
        await writer.ledger.record([writer.change(A, S.STOPPING, "idle", facts=StateFacts(resume=Resume.RESUMED))])
        clock.advance(5)
        await writer.ledger.beat(clock.now())
        found = await writer.ledger.intervals(*ALWAYS)
        check_laws(found, clock.wall_us)
        assert seconds(found) == [
            ("unknown", 1),
            ("sleep", 100),
            ("starting", 12),
            ("operational", 50),
            ("stopping", 5),
        ]
        assert [interval.facts.resume for interval in found] == [*[Resume.UNKNOWN] * 3, Resume.RESUMED, Resume.UNKNOWN]
        waking = found[2]
        assert (waking.who, waking.cause, waking.facts.phases) == ("ci", "a client came", phases)
        assert waking.facts.waits == Waits(3, 30.0, 12.0)
        assert found[3].facts.waits == Waits()
        assert found[0].from_us == START_US
        assert found[-1].to_us == clock.wall_us
        await writer.ledger.aclose()

    async def test_every_fact_comes_back(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("facts"), clock, A)
        await writer.move(A, S.STARTING)
        clock.advance(1)
        await writer.ledger.record([writer.change(A, S.OPERATIONAL, facts=FULL)])
        facts = [interval.facts for interval in await writer.ledger.intervals(*ALWAYS)]
        assert facts == [NO_FACTS, FULL, NO_FACTS]
        await writer.ledger.aclose()

    async def test_only_what_touches_the_span_in_the_order_of_satellites(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("span"), clock, B, A)
        for state in (S.SLEEP, S.STARTING, S.OPERATIONAL):
            clock.advance(10)
            await writer.ledger.record([writer.change(B, state), writer.change(A, state)])
        since = START_US + 15 * SECOND_US
        found = await writer.ledger.intervals(since, since + 10 * SECOND_US)
        assert [(i.key, i.state) for i in found] == [(A, S.SLEEP), (A, S.STARTING), (B, S.SLEEP), (B, S.STARTING)]
        assert not await writer.ledger.intervals(0, START_US - 1)
        await writer.ledger.aclose()

    async def test_a_crash_ends_what_was_open_at_the_last_sign_of_life(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("crash"), clock, A)
        await writer.move(A, S.OPERATIONAL)
        clock.advance(60)
        await writer.ledger.beat(clock.now())
        clock.advance(7)
        await writer.ledger.aclose()
        clock.advance(1000)
        again = await self.begun(shelf("crash"), clock, A)
        clock.advance(3)
        await again.move(A, S.SLEEP)
        found = await again.ledger.intervals(*ALWAYS)
        check_laws(found, clock.wall_us)
        assert seconds(found) == [("unknown", 0), ("operational", 60), ("unknown", 1010), ("sleep", 0)]
        assert found[2].cause == ENDED_BADLY
        await again.ledger.aclose()

    @pytest.mark.parametrize("how", ["crash", "leave"])
    @pytest.mark.parametrize("up", [S.OPERATIONAL, S.STARTING, S.CREATING])
    async def test_a_satellite_that_clients_use_all_the_while_has_no_hole(
        self, shelf: Shelf, how: str, up: SatelliteState
    ) -> None:
        """Also one that a daemon found up and was still probing when it ended in its turn."""
        clock = Clock()
        writer = await self.begun(shelf(how), clock, A, B, C)
        await writer.move(A, up)
        await writer.move(B, up)
        await writer.move(C, S.STOPPING)
        clock.advance(60)
        await (writer.ledger.beat(clock.now()) if how == "crash" else writer.ledger.end(clock.now(), {A, C}))
        await writer.ledger.aclose()
        clock.advance(100)
        again = shelf(how)
        await again.begin([A, B, C], clock.now(), {A, C})
        clock.advance(5)
        await again.beat(clock.now())
        found = await again.intervals(*ALWAYS)
        check_laws(found, clock.wall_us)
        told = {key: seconds(each for each in found if each.key == key) for key in (A, B, C)}
        assert told == {
            A: [("unknown", 0), (up.value, 165)],
            B: [("unknown", 0), (up.value, 60), ("unknown", 105)],
            C: [("unknown", 0), ("stopping", 60), ("unknown", 105)],  # in use, but nobody knows what became of it
        }
        await again.aclose()

    async def test_a_good_end_says_so(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("end"), clock, A)
        await writer.move(A, S.OPERATIONAL)
        clock.advance(60)
        await writer.ledger.end(clock.now())
        await writer.ledger.aclose()
        clock.advance(1000)
        again = await self.begun(shelf("end"), clock, A)
        found = await again.ledger.intervals(*ALWAYS)
        assert seconds(found) == [("unknown", 0), ("operational", 60), ("unknown", 1000)]
        assert found[2].cause == STOPPED
        await again.ledger.aclose()

    async def test_what_the_configuration_forgets_is_offline(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("gone"), clock, A, B)
        await writer.ledger.end(clock.now())
        await writer.ledger.aclose()
        for keys in ((B,), (A, B)):
            clock.advance(10)
            writer = await self.begun(shelf("gone"), clock, *keys)
            await writer.ledger.aclose()
        clock.advance(10)
        writer = await self.begun(shelf("gone"), clock, A, B)
        found = await writer.ledger.intervals(*ALWAYS)
        check_laws(found, clock.wall_us)
        own = [interval for interval in found if interval.key == A]
        assert seconds(own) == [("unknown", 10), ("offline", 10), ("unknown", 10)]
        assert own[1].cause == NOT_CONFIGURED
        assert seconds(i for i in found if i.key == B) == [("unknown", 30)]
        await writer.ledger.aclose()

    async def test_a_change_that_is_repeated_is_recorded_once(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("twice"), clock, A)
        batch = [writer.change(A, state) for state in (S.SLEEP, S.STARTING)]
        await writer.ledger.record(batch)
        await writer.ledger.record([*batch, writer.change(A, S.OPERATIONAL)])
        found = await writer.ledger.intervals(*ALWAYS)
        assert [interval.state for interval in found] == [S.UNKNOWN, S.SLEEP, S.STARTING, S.OPERATIONAL]
        await writer.ledger.aclose()

    async def test_who_was_taken_over_writes_nothing_more(self, shelf: Shelf) -> None:
        clock = Clock()
        old = await self.begun(shelf("taken"), clock, A)
        new = await self.begun(shelf("taken"), clock, A)
        before = await new.ledger.intervals(*ALWAYS)
        for call in (old.move(A, S.FAILED), old.ledger.beat(clock.now()), old.ledger.end(clock.now())):
            with pytest.raises(StoreUnusable):
                await call
        assert await new.ledger.intervals(*ALWAYS) == before
        await new.move(A, S.SLEEP)
        await old.ledger.aclose()
        await new.ledger.aclose()

    async def test_a_step_of_the_wall_clock_changes_no_sum(self, shelf: Shelf) -> None:
        clock = Clock()
        writer = await self.begun(shelf("step"), clock, A)
        await writer.move(A, S.SLEEP)
        clock.advance(100)
        clock.step(10 * 365 * 86400)
        await writer.move(A, S.STARTING)
        clock.advance(10)
        clock.step(-10 * 365 * 86400 - 30)
        await writer.move(A, S.OPERATIONAL)
        clock.advance(5)
        await writer.ledger.beat(clock.now())
        found = await writer.ledger.intervals(*ALWAYS)
        check_laws(found, clock.wall_us)
        assert seconds(found) == [("unknown", 0), ("sleep", 100), ("starting", 10), ("operational", 5)]
        await writer.ledger.aclose()

    async def test_words_that_are_not_text(self, shelf: Shelf) -> None:
        writer = await self.begun(shelf("words"), Clock(), A)
        await writer.move(A, S.FAILED, "half a pair \ud800, a NUL \0, and " + "long" * 10_000)
        (_, failed) = await writer.ledger.intervals(*ALWAYS)
        assert failed.cause.startswith("half a pair ?, a NUL \0, and long")
        await writer.ledger.aclose()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(MOVES)
    def test_no_overlaps_no_holes_nothing_lost(self, shelf: Shelf, moves: list[LedgerMove]) -> None:
        self.play(shelf, moves)

    def play(self, shelf: Shelf, moves: list[LedgerMove]) -> None:
        self.examples = getattr(self, "examples", 0) + 1
        trio.run(self._play, shelf, f"any-{id(self)}-{self.examples}", moves)

    async def _play(self, shelf: Shelf, name: str, moves: list[LedgerMove]) -> None:
        clock = Clock()
        writer = await self.begun(shelf(name), clock, A, B)
        passed_us, known = clock.boot_us, True
        for kind, *arguments in moves:
            match kind, *arguments:
                case "move", SatelliteKey() as key, SatelliteState() as state:
                    await writer.move(key, state)
                case "advance", float(by):
                    clock.advance(by)
                case "step", float(by):
                    clock.step(by)
                case ("beat",):
                    await writer.ledger.beat(clock.now())
                case ("crash" | "restart" | "reboot" | "forget",):
                    if kind == "restart":
                        await writer.ledger.end(clock.now())
                    elif kind == "reboot":
                        clock.reboot()
                        known = False
                    await writer.ledger.aclose()
                    writer = await self.begun(shelf(name), clock, *((B,) if kind == "forget" else (A, B)))
                case _:
                    raise AssertionError(f"not a move: {kind}")
            found = await writer.ledger.intervals(*ALWAYS)
            check_laws(found)
        await writer.ledger.beat(clock.now())
        found = await writer.ledger.intervals(*ALWAYS)
        check_laws(found, clock.wall_us)
        if known:
            for key in (A, B):
                lasted = sum(interval.elapsed_us for interval in found if interval.key == key)
                assert lasted == clock.boot_us - passed_us
        await writer.ledger.aclose()
