"""The responder beside a real buildkitd: running builds, a full disk, one without inodes, and a buildkitd that hangs."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds.peers.buildkit_daemon import BuildKitDaemon
from beds.peers.builds import Missing, buildkit
from beds.peers.responder_process import POLL_S, WAIT_DEADLINE_S, ResponderProcess
from bentpipe.proto.responder_pb2 import Status

SIZE_BYTES = 160 << 20
INODES = 4000


@pytest.fixture
def daemon() -> Iterator[BuildKitDaemon]:
    try:
        programs = buildkit()
    except Missing as exc:
        pytest.skip(str(exc))
    with BuildKitDaemon(programs, size_bytes=SIZE_BYTES, inodes=INODES) as running:
        yield running


def beside(daemon: BuildKitDaemon, **settings: str | int) -> ResponderProcess:
    given: dict[str, str | int] = {"buildkit_socket": str(daemon.socket), "cache": str(daemon.cache)}
    return ResponderProcess(given | settings)


def wait_for(responder: ResponderProcess, condition: Callable[[Status], bool]) -> Status:
    deadline = time.monotonic() + WAIT_DEADLINE_S
    with responder.channel() as channel:
        while True:
            status = responder.status(channel)
            if condition(status):
                return status
            assert time.monotonic() < deadline, (status, responder.log)
            time.sleep(POLL_S)


def test_running_builds(daemon: BuildKitDaemon) -> None:
    with beside(daemon) as responder:
        idle = responder.wait_status("buildkit")
        assert idle.buildkit.running_count == 0
        assert idle.buildkit.look.error == ""
        with daemon.build(("silence", "600")) as first, daemon.build(("silence", "600")) as second:
            first.wait_running()
            second.wait_running()
            busy = wait_for(responder, lambda status: status.buildkit.running_count == 2)
            refs = {each.ref for each in busy.buildkit.running}
            assert len(refs) == 2
            assert all(len(ref) >= 20 for ref in refs)
            assert all(0 < each.age_ms < WAIT_DEADLINE_S * 1000 for each in busy.buildkit.running)
            older = busy.buildkit.running[0].ref
            first.close()
            left = wait_for(responder, lambda status: status.buildkit.running_count == 1)
            assert left.buildkit.running[0].ref in refs
            assert older in refs
        wait_for(responder, lambda status: status.buildkit.running_count == 0)


def test_a_buildkit_that_hangs_is_told_and_does_not_hold_up_answers(daemon: BuildKitDaemon) -> None:
    with beside(daemon) as responder:
        responder.wait_status("buildkit")
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and runs(path, daemon)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            hung = wait_for(
                responder,
                lambda status: "in time" in status.buildkit.look.error or "timed out" in status.buildkit.look.error,
            )
            assert hung.buildkit.look.age_ms > 1000
            assert hung.machine.look.age_ms < hung.buildkit.look.age_ms
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        wait_for(responder, lambda status: status.buildkit.look.error == "")


def runs(process: Path, daemon: BuildKitDaemon) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"/buildkitd") and f"unix://{daemon.socket}".encode() in words


def fill(daemon: BuildKitDaemon) -> None:
    """Build until a build fails: the cache is full of what nobody uses."""
    for number in range(100):
        with daemon.build(("sum", "/data"), data=bytes([number]) * (12 << 20)) as build:
            if build.wait().code:
                return
    raise AssertionError("the disk is never full")


def test_a_full_disk_is_pruned_with_the_ballast(daemon: BuildKitDaemon) -> None:
    ballast = 24 << 20
    # The responder is there from the beginning, and prunes only later: the file system is filled without it.
    with beside(
        daemon, ballast_bytes=ballast, ballast_inodes=200, prune_below_percent=1, prune_until_percent=1
    ) as quiet:
        wait_for(quiet, lambda status: status.disk.ballast_bytes >= ballast)
    fill(daemon)
    full = os.statvfs(daemon.cache)
    assert full.f_bavail * full.f_frsize < SIZE_BYTES / 10
    with beside(
        daemon, ballast_bytes=ballast, ballast_inodes=200, prune_below_percent=15, prune_until_percent=50
    ) as responder:
        status = wait_for(responder, lambda status: status.disk.prunes > 0 and not status.disk.last_prune.running)
        status = wait_for(responder, lambda status: status.disk.available_bytes > SIZE_BYTES / 3)
        assert status.disk.last_prune.removed_records > 0
        wait_for(responder, lambda status: status.disk.ballast_bytes >= ballast)
        responder.wait_said("of the ballast are left")
    with daemon.build(("sum", "/data"), data=b"x" * (12 << 20)) as build:
        built = build.wait()
        assert built.code == 0, built.progress[-2000:]


def test_files_without_bytes_are_pruned(daemon: BuildKitDaemon) -> None:
    """A cache of many small files: its bytes are few, and its inodes are all in use."""
    with daemon.build(("sum", "/data"), data=b"small") as build:
        assert build.wait().code == 0
    used = os.statvfs(daemon.cache)
    assert used.f_bavail > used.f_blocks / 2
    # The rest of the inodes is not BuildKit's: pruning reaches what it can, and says so.
    others = daemon.cache / "others"
    others.mkdir()
    for number in range(used.f_favail - INODES // 20):
        (others / str(number)).touch()
    with beside(daemon, prune_below_percent=10, prune_until_percent=10) as responder:
        status = wait_for(responder, lambda status: status.disk.prunes > 0 and not status.disk.last_prune.running)
        assert status.disk.last_prune.removed_records > 0
        assert status.disk.last_prune.error == ""
        assert status.disk.available_bytes > status.disk.total_bytes / 2
        wait_for(responder, lambda _: "builds use the rest" in responder.log)
