"""When and how far the responder prunes, and what it does with the ballast, on a file system that the test makes up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bentpipe.daemon.responder import disk
from bentpipe.daemon.responder.buildkit import BuildKitError
from bentpipe.daemon.responder.disk import WORK_BYTES, DiskLook, Pruner, Space
from bentpipe.daemon.responder.looks import uptime_s
from bentpipe.daemon.responder.settings import ResponderSettings
from bentpipe.proto import responder_pb2 as pb

GIB = 1 << 30
TOTAL = 100 * GIB


class FileSystem:
    """statvfs(3) of a cache, of which BuildKit can remove all but `in_use` bytes, and frees inodes in proportion."""

    def __init__(self) -> None:
        self.used, self.in_use, self.inodes_used = 95 * GIB, 0, 10
        self.undercount = 1.0
        """Of what is used, the share that BuildKit knows."""
        self.kept: list[int] = []
        self.failure = ""

    def space(self, _path: str) -> Space:
        found = Space.__new__(Space)
        found.total_bytes, found.available_bytes = TOTAL, TOTAL - self.used
        found.total_inodes, found.available_inodes = 1000, 1000 - self.inodes_used
        return found

    def prune(self, _path: str, keep_bytes: int, _deadline_s: float) -> Iterator[int]:
        self.kept.append(keep_bytes)
        if self.failure:
            raise BuildKitError(self.failure)
        known = int(self.used * self.undercount)
        left = max(self.in_use, self.used - max(0, known - keep_bytes))
        freed, self.used = self.used - left, left
        if freed:
            yield freed


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> FileSystem:
    made = FileSystem()
    monkeypatch.setattr(disk, "Space", made.space)
    monkeypatch.setattr(disk, "prune", made.prune)
    monkeypatch.setattr(disk, "SETTLE_S", 0)
    return made


def pruner(tmp_path: Path, ballast_bytes: int = 0, ballast_inodes: int = 0) -> tuple[Pruner, DiskLook]:
    settings = ResponderSettings(cache=str(tmp_path), ballast_bytes=ballast_bytes, ballast_inodes=ballast_inodes)
    look = DiskLook(settings)
    return Pruner(settings, look), look


@pytest.mark.parametrize(
    ("used", "inodes", "low"),
    [(0, 0, False), (90, 0, False), (91, 0, True), (100, 0, True), (0, 900, False), (0, 901, True), (0, 1000, True)],
)
def test_low_is_of_bytes_or_of_inodes(tmp_path: Path, files: FileSystem, used: int, inodes: int, low: bool) -> None:
    files.used, files.inodes_used = used * GIB, inodes
    _, look = pruner(tmp_path)
    look.look()
    assert look.low.is_set() == low


def test_a_file_system_without_a_number_of_inodes() -> None:
    space = Space.__new__(Space)
    space.total_bytes, space.available_bytes = TOTAL, TOTAL
    space.total_inodes = space.available_inodes = 0
    assert not space.below(100)


def test_it_prunes_no_further_than_the_mark(tmp_path: Path, files: FileSystem) -> None:
    work, look = pruner(tmp_path)
    assert work.prune()
    assert files.kept == [int(95 * GIB * 0.75)]
    assert look.last is not None
    assert (look.last.records, look.last.freed_bytes, look.last.error, look.last.running) == (
        1,
        95 * GIB - files.kept[0],
        "",
        False,
    )


def test_buildkit_that_counts_less_than_there_is_is_asked_for_more(tmp_path: Path, files: FileSystem) -> None:
    files.undercount = 0.5
    work, _ = pruner(tmp_path)
    assert work.prune()
    assert [round(kept / GIB / 95, 2) for kept in files.kept] == [0.75, 0.5, 0.25]


def test_what_builds_use_stays_and_is_told(tmp_path: Path, files: FileSystem) -> None:
    files.in_use = 94 * GIB
    work, look = pruner(tmp_path)
    assert not work.prune()
    assert len(files.kept) == 4
    assert files.kept[-1] == 0
    assert look.last is not None
    assert look.last.error == ""


def test_nothing_is_pruned_if_there_is_room_by_then(tmp_path: Path, files: FileSystem) -> None:
    files.used = 10 * GIB
    work, _ = pruner(tmp_path)
    assert work.prune()
    assert files.kept == []


def test_a_failure_is_told_and_the_next_prune_tries_again(tmp_path: Path, files: FileSystem) -> None:
    files.failure = "no space left on device"
    work, look = pruner(tmp_path)
    assert not work.prune()
    assert look.last is not None
    assert (look.last.error, look.last.running) == ("no space left on device", False)
    files.failure = ""
    assert work.prune()
    assert look.prunes == 2


def test_each_prune_of_a_full_disk_gives_up_half_of_the_ballast(tmp_path: Path, files: FileSystem) -> None:
    work, look = pruner(tmp_path, ballast_bytes=4 * WORK_BYTES, ballast_inodes=200)
    files.used = 0
    work._hold_ballast()
    assert look.ballast.held_bytes == 4 * WORK_BYTES
    assert look.ballast.held_inodes == 200
    files.used, files.failure = TOTAL - WORK_BYTES + 1, "no space left on device"
    held = []
    for _ in range(6):
        work.prune()
        held.append((look.ballast.held_bytes // WORK_BYTES, look.ballast.held_inodes))
    assert held == [(2, 100), (1, 50), (0, 0), (0, 0), (0, 0), (0, 0)]


def test_inodes_that_are_all_in_use_are_a_full_disk(tmp_path: Path, files: FileSystem) -> None:
    work, look = pruner(tmp_path, ballast_inodes=10)
    files.used = 0
    work._hold_ballast()
    files.inodes_used = 1000
    work.prune()
    assert look.ballast.held_inodes == 0


def test_a_disk_that_is_only_low_leaves_the_ballast(tmp_path: Path, files: FileSystem) -> None:
    work, look = pruner(tmp_path, ballast_bytes=WORK_BYTES, ballast_inodes=10)
    files.used = 0
    work._hold_ballast()
    files.used = 95 * GIB
    assert work.prune()
    assert (look.ballast.held_bytes, look.ballast.held_inodes) == (WORK_BYTES, 10)


def test_the_ballast_is_not_taken_if_that_made_the_disk_low(tmp_path: Path, files: FileSystem) -> None:
    work, look = pruner(tmp_path, ballast_bytes=WORK_BYTES)
    files.used = 90 * GIB - WORK_BYTES + 1
    work._hold_ballast()
    assert look.ballast.held_bytes == 0
    files.used -= 1
    work._hold_ballast()
    assert look.ballast.held_bytes == WORK_BYTES


def test_the_ballast_of_an_earlier_responder_is_found(tmp_path: Path, files: FileSystem) -> None:
    files.used = 0
    pruner(tmp_path, ballast_bytes=WORK_BYTES, ballast_inodes=10)[0]._hold_ballast()
    _, look = pruner(tmp_path, ballast_bytes=WORK_BYTES, ballast_inodes=10)
    look.ballast.measure()
    assert (look.ballast.held_bytes, look.ballast.held_inodes) == (WORK_BYTES, 10)


def test_a_link_in_the_place_of_the_ballast_is_not_followed(tmp_path: Path, files: FileSystem) -> None:
    """A step of `security.insecure` is root on the machine, but an accident must not overwrite a file elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = tmp_path / "cache" / disk.BALLAST_NAME
    folder.mkdir(parents=True)
    (folder / "bytes").symlink_to(victim)
    files.used = 0
    work, look = pruner(tmp_path / "cache", ballast_bytes=WORK_BYTES)
    work._hold_ballast()
    assert victim.read_text() == "kept"
    assert look.ballast.held_bytes == 0


def test_what_is_told(tmp_path: Path, files: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    work, look = pruner(tmp_path, ballast_bytes=WORK_BYTES)
    files.used = 0
    work._hold_ballast()
    files.used = 95 * GIB
    look.look()
    before = uptime_s()
    work.prune()
    told = pb.Disk.FromString(look.section(before + 5))
    assert (told.total_bytes, told.available_bytes, told.total_inodes, told.available_inodes) == (
        TOTAL,
        5 * GIB,
        1000,
        990,
    )
    assert (told.ballast_bytes, told.prunes) == (WORK_BYTES, 1)
    assert 4000 < told.last_prune.age_ms <= 5000
    assert (told.last_prune.running, told.last_prune.removed_records) == (False, 1)
    assert told.last_prune.freed_bytes == 95 * GIB - files.kept[0]


def test_a_real_file_system(tmp_path: Path) -> None:
    space = Space(str(tmp_path))
    assert space.total_bytes >= space.available_bytes > 0
    assert not space.below(0)
