"""Finding our own cgroup, naming those of satellites, and the sweep after a daemon that was killed."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from beds.machines.local_processes import CHILD, isolation_or_skip, living, wait_for
from bentpipe.daemon.model import MachineId
from bentpipe.daemon.providers.process.cgroup import CgroupTree, find_own_cgroup, sweep_stale
from bentpipe.daemon.providers.process.containment import Isolation, ProcessGroup
from bentpipe.daemon.providers.process.provider import open_isolator

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
38 31 0:35 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw"""
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"


@pytest.mark.parametrize(
    ("mountinfo", "own", "found"),
    [
        (UNIFIED, "0::/system.slice/bentpipe.service\n", "/sys/fs/cgroup/system.slice/bentpipe.service"),
        (UNIFIED, "0::/\n", "/sys/fs/cgroup"),
        (HYBRID, "9:cpu:/x\n0::/y\n", "/sys/fs/cgroup/unified/y"),
        (UNIFIED.replace("0:26 /", "0:26 /machine"), "0::/machine/a\n", "/sys/fs/cgroup/a"),
        (UNIFIED.replace("/sys/fs", r"/with\040blank"), "0::/a\n", "/with blank/cgroup/a"),
        (UNIFIED.replace("0:26 /", "0:26 /machine"), "0::/elsewhere\n", None),
        (UNIFIED, "0::/../outside\n", None),
        (V1, "0::/a\n", None),
        (UNIFIED, "9:cpu:/x\n", None),
        ("", "", None),
    ],
)
def test_own_cgroup(mountinfo: str, own: str, found: str | None) -> None:
    assert find_own_cgroup(mountinfo, own) == (None if found is None else Path(found))


DOOMED_DAEMON = """
import sys, trio
from pathlib import Path
from bentpipe.config.model import ProcessSection
from bentpipe.daemon.model import MachineId, MachineState, SleepMode
from bentpipe.daemon.providers.process.containment import Isolation
from bentpipe.daemon.providers.process.provider import ProcessProvider

async def main(child, folder):
    section = ProcessSection(command=(sys.executable, "-IS", child, folder, "{host}", "{port}", "parent"))
    ids = [MachineId("acme/awake"), MachineId("acme/asleep")]
    provider = ProcessProvider({each: section for each in ids}, isolation=Isolation.CGROUP)
    async with trio.open_nursery() as nursery:
        await nursery.start(provider.run)
        for each in ids:
            await provider.start(each)
            look = await provider.describe(each)
            while look.state is not MachineState.RUNNING:
                look = await provider.wait_changed(look)
        await provider.stop(ids[1], SleepMode.HIBERNATE)
        print(provider._isolator.detail, flush=True)

trio.run(main, *sys.argv[1:])
"""


def leaders(pids: list[int]) -> list[int]:
    return [pid for pid in pids if os.getpgid(pid) == pid]


async def test_what_a_killed_daemon_leaves_is_swept(tmp_path: Path) -> None:
    await isolation_or_skip(Isolation.CGROUP)
    mark = tmp_path / "satellites"  # not in the arguments of the daemon itself, which get it below
    mark.mkdir()
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-c", DOOMED_DAEMON, str(CHILD), str(mark)], stdout=subprocess.PIPE
    )
    try:
        assert daemon.stdout is not None
        with daemon.stdout:
            tree = Path(daemon.stdout.readline().decode().strip())
        satellites = [pid for pid in living(mark) if pid != daemon.pid]
        assert len(satellites) == 4

        # While it lives, nobody sweeps it.
        assert await sweep_stale(tree.parent) == []
        assert len([pid for pid in living(mark) if pid != daemon.pid]) == 4
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    # Each leader dies with its daemon; their children are left, one of them frozen.
    await wait_for(lambda: len(living(mark)) == 2)
    assert await sweep_stale(tree.parent) == [tree.name]
    assert not tree.exists()
    await wait_for(lambda: not living(mark))


async def test_what_a_run_has_left_is_killed_before_the_next() -> None:
    """A kill that failed once (no memory, no descriptor) must not keep its satellite from ever starting again."""
    tree = await open_isolator(await isolation_or_skip(Isolation.CGROUP))
    machine = MachineId("acme.left")
    first = tree.contain(machine)
    with subprocess.Popen(first.wrap(("sleep", "600"))) as left:
        try:
            await wait_for(lambda: left.pid in first.pids())
            with contextlib.suppress(OSError):  # EBUSY while it dies
                tree.contain(machine)
            await wait_for(lambda: left.poll() is not None)
            assert left.returncode == -signal.SIGKILL
        finally:
            left.kill()
    again = tree.contain(machine)
    assert again.is_empty()
    again.remove()
    tree.close()


async def test_the_sweep_touches_only_its_own_names(tmp_path: Path) -> None:
    for name in ("bentpipe-x", "bentpipe-12x", "other", "bentpipe-"):
        (tmp_path / name).mkdir()
    (tmp_path / "bentpipe-4711").mkdir()
    assert await sweep_stale(tmp_path) == ["bentpipe-4711"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bentpipe-", "bentpipe-12x", "bentpipe-x", "other"]


def test_a_tree_that_cannot_be_used_is_refused_and_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cgroup\.freeze"):
        CgroupTree(tmp_path)


async def test_a_group_without_its_leader_is_empty() -> None:
    group = ProcessGroup()
    process = await trio.run_process(["true"], check=True)
    assert process.returncode == 0
    group.adopt(2**22 + 1)  # above the highest pid there can be
    group.kill()
    assert group.is_empty()
