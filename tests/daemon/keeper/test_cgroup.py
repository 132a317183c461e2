"""Finding our own cgroup, of both versions, those of satellites, and the sweep after a keeper that was killed."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bentpipe.daemon.keeper.cgroup import Cgroup, CgroupTree, find_own_cgroup, sweep_stale
from bentpipe.daemon.keeper.containment import Containment, Isolation, Isolator, ProcessGroup
from bentpipe.daemon.keeper.freezer import FreezerCgroup, find_own_freezer
from bentpipe.daemon.keeper.isolation import open_isolator

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


V1_FREEZER = "34 31 0:31 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer"


@pytest.mark.parametrize(
    ("mountinfo", "own", "found"),
    [
        (f"{V1}\n{V1_FREEZER}", "9:cpu:/x\n6:freezer:/y\n0::/z\n", "/sys/fs/cgroup/freezer/y"),
        (V1, "9:cpu:/x\n6:freezer:/y\n", None),
        (V1_FREEZER, "9:cpu:/x\n", None),
        (UNIFIED, "0::/a\n", None),
        ("", "", None),
    ],
)
def test_own_freezer(mountinfo: str, own: str, found: str | None) -> None:
    assert find_own_freezer(mountinfo, own) == (None if found is None else Path(found))


def open_tree(isolation: Isolation) -> Isolator:
    try:
        return open_isolator(isolation)
    except OSError as error:
        pytest.skip(f"no {isolation.value} here: {error}")


def enter_and_run(containment: Containment, *command: str) -> subprocess.Popen[bytes]:
    """A process that is in the containment before it is the command, as the keeper's children are."""
    fd = containment.open_entrance()
    assert fd is not None
    script = f"echo 0 >&{fd}; exec {shlex.join(command)}"
    process = subprocess.Popen(["bash", "-c", script], pass_fds=[fd], start_new_session=True)
    os.close(fd)
    containment.adopt(process.pid)
    return process


TREES = [Isolation.CGROUP, Isolation.FREEZER]

DOOMED = """
import sys, os, time, subprocess, shlex
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from daemon.keeper.test_cgroup import enter_and_run
from bentpipe.daemon.keeper.containment import Isolation
from bentpipe.daemon.keeper.isolation import open_isolator

tree = open_isolator(Isolation[sys.argv[1]])
contained = [tree.contain(name, None) for name in ("acme:awake", "acme:asleep")]
for each in contained:
    enter_and_run(each, "sh", "-c", "sleep 600 & sleep 600", sys.argv[2])
    while len(each.pids()) < 3: time.sleep(0.01)
contained[1].freeze()
while not contained[1].is_frozen(): time.sleep(0.01)
print(tree.detail, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("isolation", TREES, ids=lambda each: each.name.lower())
def test_what_a_killed_keeper_leaves_is_swept(isolation: Isolation) -> None:
    open_tree(isolation).close()
    tests = str(Path(__file__).parents[2])
    kind = Cgroup if isolation is Isolation.CGROUP else FreezerCgroup
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-c", DOOMED, isolation.name, "mark", tests], stdout=subprocess.PIPE
    )
    try:
        assert keeper.stdout is not None
        with keeper.stdout:
            folder = Path(keeper.stdout.readline().decode().strip())
        left = [kind(folder / name) for name in ("acme:awake", "acme:asleep")]
        assert [len(each.pids()) for each in left] == [3, 3]
        # While it lives, nobody sweeps it.
        assert folder.name not in sweep_stale(folder.parent, kind)
        assert [len(each.pids()) for each in left] == [3, 3]
    finally:
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()
    assert folder.name in sweep_stale(folder.parent, kind)
    assert not folder.exists()


@pytest.mark.parametrize("isolation", TREES, ids=lambda each: each.name.lower())
def test_what_a_run_has_left_is_killed_before_the_next(isolation: Isolation) -> None:
    """A kill that failed once (no memory, no descriptor) must not keep its satellite from ever starting again."""
    tree = open_tree(isolation)
    first = tree.contain("acme.left", None)
    with enter_and_run(first, "sleep", "600") as left:
        try:
            deadline = time.monotonic() + 20
            while left.pid not in first.pids():
                assert time.monotonic() < deadline
                time.sleep(0.005)
            with contextlib.suppress(OSError):  # EBUSY while it dies
                tree.contain("acme.left", None)
            assert left.wait(20) == -signal.SIGKILL
        finally:
            left.kill()
    again = tree.contain("acme.left", None)
    assert again.is_empty()
    again.remove()
    tree.close()


def test_the_sweep_touches_only_its_own_names(tmp_path: Path) -> None:
    for name in ("bentpipe-x", "bentpipe-12x", "other", "bentpipe-"):
        (tmp_path / name).mkdir()
    (tmp_path / "bentpipe-4711").mkdir()
    assert sweep_stale(tmp_path) == ["bentpipe-4711"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bentpipe-", "bentpipe-12x", "bentpipe-x", "other"]


def test_a_tree_that_cannot_be_used_is_refused_and_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cgroup\.freeze"):
        CgroupTree(tmp_path)


def test_a_group_without_its_leader_is_empty() -> None:
    group = ProcessGroup()
    group.adopt(2**22 + 1)  # above the highest pid there can be
    group.kill()
    assert group.is_empty()
