"""The test bed of the process provider: its machines are `satellite_child.py` with one habit each."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from beds.contracts.provider import DEADLINE_S
from bentpipe.config.model import ProcessSection
from bentpipe.daemon.keeper.containment import Isolation
from bentpipe.daemon.keeper.freezer import find_own_freezer
from bentpipe.daemon.model import Address, MachineId
from bentpipe.daemon.providers.process.provider import ProcessProvider

CHILD = Path(__file__).with_name("satellite_child.py")
LOOK_AGAIN_S = 0.005


def child_section(folder: Path, *habits: str, grace_s: float = 20.0, host: str = "127.0.0.1") -> ProcessSection:
    command = (sys.executable, "-IS", str(CHILD), str(folder), "{host}", "{port}", *habits)
    return ProcessSection.model_validate({"command": command, "host": host, "stop_grace": grace_s})


def living(mark: str | Path) -> list[int]:
    """Processes other than this one with `mark` in their arguments; zombies have none."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if str(mark).encode() in Path("/proc", entry, "cmdline").read_bytes():
                    found.append(int(entry))
    return found


async def wait_for(check: Callable[[], bool]) -> None:
    """Wait for what announces itself to nobody."""
    with trio.fail_after(DEADLINE_S):
        while not check():
            await trio.sleep(LOOK_AGAIN_S)


async def ask(address: Address) -> tuple[str, dict[str, str], list[int]]:
    """Connect to a child. Returns its token, environment and descriptors."""
    with trio.fail_after(DEADLINE_S):
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            data = b"".join([chunk async for chunk in stream])
    token, environment, fds = json.loads(data)
    return token, environment, fds


def thaw_killed(pid: int) -> None:
    """With cgroups of version 1 a frozen process dies of SIGKILL when it is thawed."""
    with contextlib.suppress(
        FileNotFoundError, ProcessLookupError, PermissionError
    ):  # dead, it is in the root's cgroup
        folder = find_own_freezer(Path("/proc/self/mountinfo").read_text(), Path(f"/proc/{pid}/cgroup").read_text())
        assert folder is not None
        (folder / "freezer.state").write_text("THAWED")


@dataclasses.dataclass
class ProcessHarness:
    provider: ProcessProvider
    folder: Path
    good = MachineId("acme/good")
    slow_to_stop = MachineId("acme/deaf")
    unstartable = MachineId("acme/unstartable")
    short_lived = MachineId("acme/fail")
    unknown = MachineId("acme/unknown")

    def pids(self, machine_id: MachineId) -> list[int]:
        return living(self.folder / machine_id)

    async def memory(self, address: Address) -> str:
        return (await ask(address))[0]

    async def kill(self, machine_id: MachineId) -> None:
        for pid in self.pids(machine_id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if self.provider.isolation is Isolation.FREEZER:
                thaw_killed(pid)


async def isolation_or_skip(isolation: Isolation) -> Isolation:
    """Skip, with the host's reason, if this isolation is not available."""
    provider = ProcessProvider({}, isolation=isolation)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        with trio.move_on_after(0):
            await provider.aclose()
    if provider.isolation is None:
        pytest.skip(f"no {isolation.value} here")
    return isolation


SECTIONS: dict[str, tuple[str, ...]] = {
    "acme/good": ("counting",),
    "acme/control": ("counting",),
    "acme/deaf": ("deaf",),
    "acme/fail": ("fail",),
    "acme/parent": ("parent", "counting"),
    "acme/runaway": ("runaway",),
    "acme/mute": ("mute",),
}


@contextlib.asynccontextmanager
async def open_harness(isolation: Isolation, folder: Path) -> AsyncIterator[ProcessHarness]:
    """Run a provider over all habits; at the end no process of it may be left."""
    specs = {}
    for name, habits in SECTIONS.items():
        (folder / name).mkdir(parents=True)
        specs[MachineId(name)] = child_section(folder / name, *habits)
    (folder / "acme/impatient").mkdir()
    specs[MachineId("acme/impatient")] = child_section(folder / "acme/impatient", "deaf", "parent", grace_s=0.05)
    (folder / "acme/keeper").mkdir()
    kept = child_section(folder / "acme/keeper")
    specs[MachineId("acme/keeper")] = kept.model_copy(
        update={"command": ("/bin/sh", "-c", '"$@" & sleep 600', "sh", *kept.command), "stop_grace_s": 0.05}
    )
    specs[MachineId("acme/unstartable")] = ProcessSection(command=("/no/such/program", "{port}"))
    harness = ProcessHarness(ProcessProvider(specs, isolation=isolation), folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(harness.provider.run)
        try:
            yield harness
        finally:
            # The deaf would have their whole grace: what is left of a test is not owed it.
            for name in SECTIONS:
                if name != "acme/runaway":
                    await harness.kill(MachineId(name))
            await harness.provider.aclose()
    assert living(folder) == []
