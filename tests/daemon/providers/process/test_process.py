"""The process provider with real processes, in both kinds of isolation."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import trio

from beds.contracts.provider import DEADLINE_S, ProviderContract, address_of, start, wait_state
from beds.machines.local_processes import (
    ProcessHarness,
    ask,
    child_section,
    isolation_or_skip,
    living,
    open_harness,
    thaw_killed,
    wait_for,
)
from bentpipe.config.model import ProcessSection
from bentpipe.daemon.errors import ProviderPermanent, ProviderRetryable, SleepModeRefused
from bentpipe.daemon.keeper.containment import Isolation
from bentpipe.daemon.keeper.protocol import Flag
from bentpipe.daemon.model import MachineId, MachineState, SleepMode
from bentpipe.daemon.providers.process import machine as local_machine
from bentpipe.daemon.providers.process.kept import KeptProcess
from bentpipe.daemon.providers.process.listening import FRESH_S
from bentpipe.daemon.providers.process.place import KeeperPlace
from bentpipe.daemon.providers.process.provider import ProcessProvider

PARENT = MachineId("acme/parent")
KEEPER = MachineId("acme/keeper")
"""Its leader outlives what listens."""


@pytest.fixture(params=Isolation, ids=lambda isolation: isolation.name.lower())
async def isolation(request: pytest.FixtureRequest) -> Isolation:
    return await isolation_or_skip(request.param)


@pytest.fixture
async def harness(isolation: Isolation, tmp_path: Path) -> AsyncIterator[ProcessHarness]:
    async with open_harness(isolation, tmp_path) as harness:
        yield harness


class TestContract(ProviderContract):
    """The suite that every provider passes."""


def counted(folder: Path) -> int:
    """How far the satellite has counted; 0 before it has begun, which may be after it listens."""
    return sum(int.from_bytes(path.read_bytes(), "little") for path in folder.glob("count-*"))


async def test_hibernation_stops_every_thread_and_child(harness: ProcessHarness) -> None:
    control = MachineId("acme/control")
    await start(harness.provider, PARENT)
    await start(harness.provider, control)
    await wait_for(lambda: counted(harness.folder / PARENT) > 0 and counted(harness.folder / control) > 0)
    await harness.provider.stop(PARENT, SleepMode.HIBERNATE)
    look = await harness.provider.describe(PARENT)
    assert look.state is MachineState.HIBERNATED
    frozen_at, control_at = counted(harness.folder / PARENT), counted(harness.folder / control)
    # The clock of this test is a machine that is awake: it counts as fast as the frozen one did.
    await wait_for(lambda: counted(harness.folder / control) > control_at + 100)
    assert counted(harness.folder / PARENT) == frozen_at
    if harness.provider.isolation is Isolation.PROCESS_GROUP:
        assert {psutil.Process(pid).status() for pid in harness.pids(PARENT)} == {psutil.STATUS_STOPPED}
    await start(harness.provider, PARENT)
    await wait_for(lambda: counted(harness.folder / PARENT) > frozen_at)


async def test_a_refused_freeze_leaves_it_running(harness: ProcessHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await start(harness.provider, harness.good)
    with monkeypatch.context() as patched:
        patched.setattr(local_machine, "FREEZE_DEADLINE_S", 0)

        async def never_frozen(process: KeptProcess) -> Flag:
            return Flag(0)

        patched.setattr(KeptProcess, "look", never_frozen)
        with pytest.raises(SleepModeRefused, match="could not be frozen within 0 s"):
            await harness.provider.stop(harness.good, SleepMode.HIBERNATE)
    assert await harness.provider.describe(harness.good) == before
    assert await harness.memory(address_of(before))


async def test_the_port_is_kept_over_hibernation(harness: ProcessHarness) -> None:
    before = await start(harness.provider, harness.good)
    await harness.provider.stop(harness.good, SleepMode.HIBERNATE)
    assert await start(harness.provider, harness.good) == before


@pytest.mark.parametrize("how", ["stop", "death", "hibernated death"])
async def test_grandchildren_go_with_their_satellite(harness: ProcessHarness, how: str) -> None:
    await start(harness.provider, PARENT)
    await wait_for(lambda: len(harness.pids(PARENT)) == 2)
    if how == "stop":
        await harness.provider.stop(PARENT, SleepMode.STOP)
    else:
        if "hibernated" in how:
            await harness.provider.stop(PARENT, SleepMode.HIBERNATE)
        leader = next(pid for pid in harness.pids(PARENT) if os.getpgid(pid) == pid)
        os.kill(leader, signal.SIGKILL)
        if harness.provider.isolation is Isolation.FREEZER and "hibernated" in how:
            thaw_killed(leader)
    look = await wait_state(harness.provider, PARENT, MachineState.STOPPED)
    assert harness.pids(PARENT) == []
    assert look.reason == ("stopped" if how == "stop" else "killed by SIGKILL")


async def test_a_child_that_left_the_group_holds_nothing_up(harness: ProcessHarness) -> None:
    runaway = MachineId("acme/runaway")
    await start(harness.provider, runaway)
    await wait_for(lambda: len(harness.pids(runaway)) == 2)
    await harness.provider.stop(runaway, SleepMode.STOP)
    await wait_state(harness.provider, runaway, MachineState.STOPPED)  # although it holds the output pipe
    left = harness.pids(runaway)
    if harness.provider.isolation is not Isolation.PROCESS_GROUP:
        assert left == []
    else:
        # The known limit of process groups. What it leaves is ours to end.
        (pid,) = left
        os.kill(pid, signal.SIGKILL)
        await wait_for(lambda: not harness.pids(runaway))


async def test_the_stubborn_are_killed_after_their_grace(harness: ProcessHarness) -> None:
    impatient = MachineId("acme/impatient")
    await start(harness.provider, impatient)
    await harness.provider.stop(impatient, SleepMode.STOP)
    look = await wait_state(harness.provider, impatient, MachineState.STOPPED)
    assert look.reason == "stopped: killed after 0.05 s of grace"
    assert harness.pids(impatient) == []


async def test_an_early_exit_tells_its_status_and_last_words(harness: ProcessHarness) -> None:
    await harness.provider.start(harness.short_lived)
    look = await wait_state(harness.provider, harness.short_lived, MachineState.STOPPED, MachineState.RUNNING)
    assert look.reason == "exited with status 3: first line | no such\N{REPLACEMENT CHARACTER}[31m thing"


async def test_pending_until_the_satellite_itself_listens(harness: ProcessHarness) -> None:
    mute = MachineId("acme/mute")
    await harness.provider.start(mute)
    await wait_for((harness.folder / mute / "mute").exists)
    assert (await harness.provider.describe(mute)).state is MachineState.PENDING
    with pytest.raises(SleepModeRefused, match="pending"):
        await harness.provider.stop(mute, SleepMode.HIBERNATE)
    await harness.provider.stop(mute, SleepMode.STOP)
    assert (await wait_state(harness.provider, mute, MachineState.STOPPED)).reason == "stopped"


async def test_a_stranger_on_the_port_is_not_the_satellite(isolation: Isolation, tmp_path: Path) -> None:
    machine_id = MachineId("acme/late")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        section = child_section(tmp_path).model_copy(update={"port": stranger.getsockname()[1]})
        provider = ProcessProvider({machine_id: section}, isolation=isolation)
        async with trio.open_nursery() as nursery:
            await nursery.start(provider.run)
            await provider.start(machine_id)
            look = await wait_state(provider, machine_id, MachineState.STOPPED, MachineState.RUNNING)
            await provider.aclose()
    assert look.state is MachineState.STOPPED
    assert "Address already in use" in look.reason


async def test_the_environment_is_the_satellites_own(
    isolation: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "the daemon's")
    monkeypatch.setenv("HOME", "/home/of-all")
    machine_id = MachineId("acme/env")
    section = child_section(tmp_path).model_copy(update={"environment": {"COLOUR": "blue", "LANG": "C"}})
    provider = ProcessProvider({machine_id: section}, isolation=isolation)
    held = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(held, True)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        _, environment, fds = await ask(address_of(await start(provider, machine_id)))
        await provider.aclose()
    os.close(held)
    environment.pop("PWD", None)  # /bin/sh's own
    environment.pop("LC_CTYPE", None)  # Python's own, under LANG=C
    assert environment == {"PATH": os.environ["PATH"], "HOME": "/home/of-all", "LANG": "C", "COLOUR": "blue"}
    assert fds == [0, 1, 2]


async def test_ipv6_and_the_folder(isolation: Isolation, tmp_path: Path) -> None:
    machine_id = MachineId("acme/six")
    section = child_section(tmp_path, host="::1").model_copy(update={"directory": tmp_path})
    provider = ProcessProvider({machine_id: section}, isolation=isolation)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        look = await start(provider, machine_id)
        assert address_of(look).host == "::1"
        (pid,) = living(tmp_path)
        assert Path(f"/proc/{pid}/cwd").readlink() == tmp_path
        await provider.aclose()


@pytest.mark.parametrize("how", ["aclose", "cancel"])
async def test_the_end_of_the_provider_leaves_no_process(isolation: Isolation, tmp_path: Path, how: str) -> None:
    habits = {"plain": (), "deaf": ("deaf", "parent"), "asleep": ("parent",), "mute": ("mute", "parent")}
    specs = {MachineId(name): child_section(tmp_path, *each, grace_s=0.2) for name, each in habits.items()}
    provider = ProcessProvider(specs, isolation=isolation)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(provider.run)
            for name in ("plain", "deaf", "asleep"):
                await start(provider, MachineId(name))
            await provider.start(MachineId("mute"))
            await provider.stop(MachineId("asleep"), SleepMode.HIBERNATE)
            assert len(living(tmp_path)) >= 4
            if how == "aclose":
                await provider.aclose()
            else:
                nursery.cancel_scope.cancel()
    assert living(tmp_path) == []
    for machine_id in specs:
        assert (await provider.describe(machine_id)).state is MachineState.STOPPED
        with pytest.raises(ProviderRetryable):
            await provider.start(machine_id)
    with trio.fail_after(DEADLINE_S):
        await provider.aclose()


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.02, 0.05, 0.1, 0.2])
async def test_cancelled_while_it_starts_it_ends_and_leaves_no_keeper(tmp_path: Path, after_s: float) -> None:
    """A daemon that gets SIGTERM before it has started."""
    place = KeeperPlace(tmp_path / "keeper.sock", outlive_s=600)
    provider = ProcessProvider({MachineId("a"): child_section(tmp_path)}, place=place)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(provider.run)
            await trio.sleep(after_s)
            nursery.cancel_scope.cancel()
        await provider.aclose()
    await wait_for(lambda: living(f"socket={place.socket}") == [])


async def test_a_frozen_satellite_hears_sigterm_before_it_is_killed(isolation: Isolation, tmp_path: Path) -> None:
    machine_id = MachineId("acme/asleep")
    provider = ProcessProvider({machine_id: child_section(tmp_path)}, isolation=isolation)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        await start(provider, machine_id)
        await provider.stop(machine_id, SleepMode.HIBERNATE)
        with trio.fail_after(DEADLINE_S):
            await provider.aclose()
    assert (await provider.describe(machine_id)).reason == "stopped"


async def test_a_frozen_satellite_that_is_known_no_more_ends(isolation: Isolation, tmp_path: Path) -> None:
    """A reload has taken it out of the configuration, or has changed its command."""
    machine_id = MachineId("acme/asleep")
    section = child_section(tmp_path)
    provider = ProcessProvider({machine_id: section}, isolation=isolation)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        await start(provider, machine_id)
        await provider.stop(machine_id, SleepMode.HIBERNATE)
        provider.forget(machine_id)
        provider.add(machine_id, section, is_configured=True)
        with trio.fail_after(DEADLINE_S):
            while (await provider.describe(machine_id)).state is not MachineState.RUNNING:
                with contextlib.suppress(ProviderRetryable):  # the old process is ending
                    await provider.start(machine_id)
                await trio.sleep(0.01)
        assert len(living(tmp_path)) == 1
        await provider.aclose()
    assert living(tmp_path) == []


@pytest.mark.parametrize("is_configured", [True, False])
async def test_a_machine_that_was_added_later_is_as_one_of_the_start(tmp_path: Path, is_configured: bool) -> None:
    """Its process ends if the next daemon's configuration does not name it, unless it is the registry's."""
    place = KeeperPlace(tmp_path / "keeper.sock", outlive_s=600)
    machine_id = MachineId("acme/late")
    folder = tmp_path / "satellite"
    folder.mkdir()
    first = ProcessProvider({}, place=place)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.run)
        first.add(machine_id, child_section(folder), is_configured=is_configured)
        await start(first, machine_id)
        first.leave_nowait()
        await first.aclose()
    (before,) = living(folder)
    second = ProcessProvider({}, place=place)
    async with trio.open_nursery() as nursery:
        await nursery.start(second.run)
        if is_configured:
            await wait_for(lambda: living(folder) == [])
        else:
            second.add(machine_id, child_section(folder), is_configured=False)
            assert (await second.describe(machine_id)).state is MachineState.RUNNING
            assert living(folder) == [before]
        await second.aclose()
    await wait_for(lambda: living(f"socket={place.socket}") == [])
    assert living(folder) == []


async def test_start_says_why_it_cannot(isolation: Isolation, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    cases = {
        "there is no program at /no/such": ProcessSection(command=("/no/such", "{port}")),
        "program 'no-such-thing' is in no folder of PATH (": ProcessSection(command=("no-such-thing", "{port}")),
        f"not an executable file: {plain}": ProcessSection(command=(str(plain), "{port}")),
        f"not an executable file: {tmp_path}": ProcessSection(command=(str(tmp_path), "{port}")),
        "no such directory: /no/such": ProcessSection(command=(sys.executable, "{port}"), directory=Path("/no/such")),
        "cannot open a port on 192.0.2.1": ProcessSection(command=(sys.executable, "{port}"), host="192.0.2.1"),
    }
    provider = ProcessProvider({MachineId(text): section for text, section in cases.items()}, isolation=isolation)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        for text in cases:
            for _ in range(2):  # the first refusal leaves nothing in the way of the second
                with pytest.raises(ProviderPermanent) as caught:
                    await provider.start(MachineId(text))
                assert text in str(caught.value)
            assert (await provider.describe(MachineId(text))).state is MachineState.STOPPED
        await provider.aclose()


async def test_before_it_runs_the_provider_says_so(tmp_path: Path) -> None:
    provider = ProcessProvider({MachineId("a"): child_section(tmp_path)})
    assert provider.isolation is None
    with pytest.raises(ProviderRetryable, match="not running"):
        await provider.start(MachineId("a"))
    with trio.fail_after(DEADLINE_S):
        await provider.aclose()


async def test_output_goes_to_the_log_folder(tmp_path: Path) -> None:
    machine_id = MachineId("acme/fail")
    provider = ProcessProvider(
        {machine_id: child_section(tmp_path, "fail")}, tmp_path, isolation=Isolation.PROCESS_GROUP
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        await provider.start(machine_id)
        await wait_state(provider, machine_id, MachineState.STOPPED)
        await provider.aclose()
    assert (tmp_path / "acme:fail.log").read_bytes() == b"first line\nno such\x1b[31m thing\n"


async def test_a_port_that_is_a_strangers_now_is_not_vouched_for(harness: ProcessHarness) -> None:
    """The one that listened has died, the machine lives on, and somebody else has got its port."""
    look = await start(harness.provider, KEEPER)
    address = address_of(look)
    assert harness.provider.vouches_nowait(look)
    (listener,) = (pid for pid in harness.pids(KEEPER) if psutil.Process(pid).name().startswith("python"))
    os.kill(listener, signal.SIGKILL)
    await wait_for(lambda: not psutil.pid_exists(listener) or psutil.Process(listener).status() == psutil.STATUS_ZOMBIE)
    await trio.sleep(2 * FRESH_S)
    assert harness.provider.vouches_nowait(look)  # nobody listens: who dials reaches nobody
    with socket.create_server((address.host, address.port)) as stranger:
        await trio.sleep(2 * FRESH_S)
        assert not harness.provider.vouches_nowait(look)
        assert await harness.provider.describe(KEEPER) == look
        stranger.close()
    await trio.sleep(2 * FRESH_S)
    assert harness.provider.vouches_nowait(look)
