"""A satellite and its responder: what is read when, and what follows. The satellite's real tasks, on a clock that jumps."""

import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from trio.testing import MockClock

from beds.machines.memory_provider import FakeMachine, MemoryProvider
from beds.machines.played_machine import LONG_RULES
from beds.peers.responder_status import BOOT_ID, YOUNG, status
from bentpipe.config.responder import AbuseSection, ResponderSection
from bentpipe.daemon.fleet import satellite as module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.reader import ReadingContext
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import Address, Resume, SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.readings.condition import Condition
from bentpipe.daemon.readings.reading import Reading, ReadingFailed, ReadResult, read_status
from bentpipe.proto import responder_pb2 as pb

S = SatelliteState
KEY = SatelliteKey("acme", "m")
SECTION = ResponderSection.model_validate({"port": 9571})
RULES = dataclasses.replace(LONG_RULES, counts_builds=True, min_awake_s=0)
HOUR_S = 3600.0


class Responder:
    """Answers as the test says, and counts."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.status: Callable[[], pb.Status] = lambda: status(boot_id=machine.memory, uptime_ms=1000)
        self.error: Exception | None = None
        self.asked = 0
        self.takes_s = 0.1

    async def read(self, key: SatelliteKey, address: Address) -> Reading:
        self.asked += 1
        await trio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return read_status(self.status().SerializeToString())


@dataclasses.dataclass
class Bed:
    satellite: Satellite
    responder: Responder
    context: ReadingContext
    told: list[Transition]
    cut: list[SatelliteKey]

    async def use(self, stay_s: float = 1.0) -> None:
        async with self.satellite.lease():
            await trio.sleep(stay_s)

    @property
    def condition(self) -> Condition:
        return self.satellite.reader.condition


@contextlib.asynccontextmanager
async def bed(monkeypatch: pytest.MonkeyPatch, section: ResponderSection = SECTION) -> AsyncIterator[Bed]:
    async def listens(address: Address, tell: object) -> None:
        await trio.sleep(0.5)

    monkeypatch.setattr(module, "wait_listening", listens)
    provider = MemoryProvider()
    machine = provider.add("acme.m", call_s=0.1, pending_s=3.0, stopping_s=4.0)
    responder, told, cut = Responder(machine), list[Transition](), list[SatelliteKey]()

    def cut_all(key: SatelliteKey) -> int:
        cut.append(key)
        return 3

    context = ReadingContext(
        responder.read, connections=lambda key: [f"192.0.2.{n}:1 of ci" for n in range(10)], cut=cut_all
    )
    satellite = Satellite(KEY, RULES, FleetContext(provider, told.append, reading=context), responder=section)
    async with trio.open_nursery() as nursery:
        await nursery.start(satellite.run)
        yield Bed(satellite, responder, context, told, cut)
        nursery.cancel_scope.cancel()


async def test_one_question_after_a_wake_tells_the_boot_and_the_condition(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with bed(monkeypatch) as stage:
        await stage.use()
        assert stage.responder.asked == 1
        assert stage.condition is Condition.WELL
        assert stage.satellite.reader.last is not None
        await trio.sleep(LONG_RULES.sleep_after_s + 10)
        assert stage.satellite.state is S.SLEEP
        assert stage.satellite.reader.last is None
        asked = stage.responder.asked
        await trio.sleep(HOUR_S)
        assert stage.responder.asked == asked, "a satellite that sleeps is not asked"
        await stage.use()
        assert stage.satellite.resumes == {Resume.COLD: 1, Resume.RESUMED: 1}


async def test_a_responder_that_comes_up_after_the_port_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with bed(monkeypatch) as stage:
        stage.responder.error = ReadingFailed(ReadResult.UNREACHABLE, "refused")
        async with stage.satellite.lease():
            await trio.sleep(2)
            stage.responder.error = None
            await trio.sleep(2)
            assert stage.satellite.reader.last is not None
        assert stage.context.counters.results[ReadResult.UNREACHABLE] > 1


async def test_a_build_of_hours_keeps_it_awake_and_its_end_lets_it_sleep(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with bed(monkeypatch) as stage:
        stage.responder.status = lambda: status(boot_id=stage.responder.machine.memory, running=1)
        await stage.use()
        await trio.sleep(5 * HOUR_S)
        assert stage.satellite.state is S.OPERATIONAL
        stage.responder.status = lambda: status(boot_id=stage.responder.machine.memory)
        await trio.sleep(LONG_RULES.sleep_after_s + 30)
        assert stage.satellite.state is S.SLEEP


async def test_the_last_look_asks_anew_and_a_dead_responder_holds_nobody(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with bed(monkeypatch) as stage:
        await stage.use()
        await trio.sleep(60)
        stage.responder.error = ReadingFailed(ReadResult.TIMEOUT, "no answer in 5 s")
        await trio.sleep(LONG_RULES.sleep_after_s)
        assert stage.satellite.state is S.SLEEP


async def test_a_reader_that_breaks_is_started_again_and_the_machine_is_told_meanwhile(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with bed(monkeypatch) as stage:
        await stage.use()
        stage.responder.error = RuntimeError("a mistake of the daemon's own")
        await trio.sleep(LONG_RULES.sleep_after_s + 60)
        assert stage.satellite.state is S.SLEEP
    assert "a task failed" in caplog.messages


async def test_up_but_silent_is_told_from_busy_and_from_deaf(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with bed(monkeypatch) as stage, stage.satellite.lease():
        memory = stage.responder.machine.memory
        for found, condition in (
            (status(boot_id=memory, cpu_percent=99.0), Condition.BUSY),
            (status(boot_id=memory, running=None), Condition.DEAF),
            (status(boot_id=memory), Condition.WELL),
        ):
            stage.responder.status = lambda found=found: found  # type: ignore[misc]
            await trio.sleep(20)
            assert stage.condition is condition
        stage.responder.error = ReadingFailed(ReadResult.TIMEOUT, "no answer in 5 s")
        await trio.sleep(12)
        assert stage.condition is Condition.WELL, "one answer may be lost"
        await trio.sleep(60)
        assert stage.condition is Condition.SILENT
        assert stage.satellite.state is S.OPERATIONAL, "nobody is put to sleep for his condition"
    changes = [record.__dict__["fields"] for record in caplog.records if record.message == "condition"]
    assert [each["condition"] for each in changes[-3:]] == ["deaf", "well", "silent"]
    assert changes[-1]["words"] == "no answer in 5 s"


async def test_readings_that_fail_become_rare(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    async with bed(monkeypatch) as stage, stage.satellite.lease():
        await trio.sleep(20)
        stage.responder.error = ReadingFailed(ReadResult.TIMEOUT, "no answer")
        asked = stage.responder.asked
        await trio.sleep(HOUR_S)
        assert stage.responder.asked - asked < HOUR_S / 100


async def test_a_kill_is_logged_with_the_connections_and_stands_in_the_ledger(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    kill = pb.Kill(number=1, cause=pb.Kill.OOM, step="buildkit/x", memory_bytes=7, build_refs=["ref1"])
    async with bed(monkeypatch) as stage:
        await stage.use(20)
        kills = pb.Kills(look=YOUNG, machine_oom_kills=1, recent=[kill])
        memory = stage.responder.machine.memory
        stage.responder.status = lambda: status(boot_id=memory, kills=kills, memory_percent=42)
        await trio.sleep(LONG_RULES.sleep_after_s + 30)
        assert stage.satellite.state is S.SLEEP
    (record,) = [each for each in caplog.records if each.message == "a build ran out of memory"]
    fields = record.__dict__["fields"]
    assert fields["oom_kills"] == 1
    assert fields["steps"] == [{"cause": "oom", "step": "buildkit/x", "builds": ["ref1"], "memory_bytes": 7}]
    assert fields["connections"][0] == "192.0.2.0:1 of ci"
    assert (len(fields["connections"]), fields["more_connections"]) == (8, 2)
    (stay,) = [each.facts for each in stage.told if each.before is S.OPERATIONAL]
    assert (stay.kills, stay.peaks.memory_percent) == (1, 42)


async def test_another_boot_id_in_the_middle_is_looked_at_and_its_word_does_not_count(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with bed(monkeypatch) as stage:
        await stage.use(20)
        looks = stage.responder.machine.looks
        stage.responder.status = lambda: status(boot_id=BOOT_ID, running=5)
        await trio.sleep(SECTION.interval_s)
        assert stage.context.counters.boots == 1
        assert stage.responder.machine.looks == looks + 1
        assert stage.satellite._machine.known.builds.running is None
        await trio.sleep(SECTION.interval_s)
        assert stage.satellite._machine.known.builds.running == 5, "it is its own kernel after all"


@pytest.mark.parametrize("action", ["off", "notify", "sleep", "cut"])
async def test_what_is_done_about_a_miner(
    action: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    section = SECTION.model_copy(update={"interval_s": 60.0, "abuse": AbuseSection.model_validate({"action": action})})
    async with bed(monkeypatch, section) as stage:
        memory = stage.responder.machine.memory
        began = trio.current_time()

        def mine() -> pb.Status:
            up_s = trio.current_time() - began
            memory = stage.responder.machine.memory
            return status(boot_id=memory, running=1, cpu_s=1.8 * up_s, old_connections=1, oldest_build_s=up_s)

        stage.responder.status = mine
        await stage.use()
        await trio.sleep(8 * HOUR_S)
        asleep = stage.satellite.state is not S.OPERATIONAL
        assert asleep == (action in ("sleep", "cut")), memory
        assert stage.cut == ([KEY] if action == "cut" else [])
        assert stage.context.counters.actions == ({} if action == "off" else {action: 1})
        if not asleep:
            assert stage.satellite.reader.is_suspected
    told = [record for record in caplog.records if record.message == "abuse suspected"]
    assert [record.levelno for record in told] == ([] if action == "off" else [logging.WARNING])


async def test_without_readings_a_responder_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    provider = MemoryProvider()
    provider.add("acme.m")
    satellite = Satellite(KEY, LONG_RULES, FleetContext(provider, lambda transition: None), responder=SECTION)
    assert not satellite.reader.reads
