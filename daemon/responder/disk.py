"""Keeps room on the file system of BuildKit's cache: watches bytes and inodes, prunes at a low mark, and holds the ballast.

BuildKit collects garbage only after a build returns, and counts no inodes. The ballast is room that only pruning may use:
BuildKit must write to record what it removes, and on a full disk it could not. Each prune of a full disk gives up half of
it, since a build that still fills the disk takes what it finds.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from bentpipe.daemon.responder.buildkit import BuildKitError, prune
from bentpipe.daemon.responder.hpack import HpackError
from bentpipe.daemon.responder.looks import INFO, WARNING, Look, log, milliseconds, uptime_s
from bentpipe.daemon.responder.settings import ResponderSettings
from bentpipe.daemon.responder.wire import Fields, WireError, encode_fields

KEPT_SHARES = (0.75, 0.5, 0.25, 0.0)
"""Of what is used: how much BuildKit may keep, try after try. It counts less than the file system does, and no inodes."""
PRUNE_DEADLINE_S = 600.0
"""Of one try. BuildKit goes on removing what it has begun to remove."""
PAUSE_S = 30.0
"""After a prune that has not reached its mark: the rest is in use by builds."""
RETRY_S = 5.0
"""After a prune that has failed."""
WORK_BYTES, WORK_INODES = 16 << 20, 64
"""Room that BuildKit needs to record what it removes. If there is less, half of the ballast is given up."""
SETTLE_S = 2.0
"""BuildKit removes snapshots in the background after it has answered."""
BALLAST_NAME = "bentpipe-ballast"


class Space:
    """What statvfs(3) says of a file system."""

    def __init__(self, path: str) -> None:
        found = os.statvfs(path)
        self.total_bytes = found.f_blocks * found.f_frsize
        self.available_bytes = found.f_bavail * found.f_frsize
        self.total_inodes = found.f_files
        self.available_inodes = found.f_favail

    def below(self, percent: int) -> bool:
        """Whether less of the bytes or of the inodes is available. Some file systems have no number of inodes."""
        inodes = self.total_inodes and self.available_inodes * 100 < self.total_inodes * percent
        return self.available_bytes * 100 < self.total_bytes * percent or bool(inodes)


class Ballast:
    """One file of real blocks, and a folder of empty files, on the file system of the cache."""

    def __init__(self, settings: ResponderSettings) -> None:
        self._path = os.path.join(settings.cache, BALLAST_NAME)
        self._file = os.path.join(self._path, "bytes")
        self._bytes, self._inodes = settings.ballast_bytes, settings.ballast_inodes
        self.held_bytes = self.held_inodes = 0

    def measure(self) -> None:
        """Find what an earlier responder has left. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.held_inodes = len(self._names())
            self.held_bytes = os.lstat(self._file).st_blocks * 512

    def take(self) -> None:
        """Hold all of it. Raises OSError."""
        os.makedirs(self._path, mode=0o700, exist_ok=True)
        file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if self._bytes:
                os.posix_fallocate(file, 0, self._bytes)
        finally:
            os.close(file)
        for number in range(self._inodes):
            path = os.path.join(self._path, str(number))
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self.measure()

    def release_half(self) -> None:
        """Give up half of it, or what is left if that is little. Raises OSError."""
        names = self._names()
        for name in names[len(names) // 2 if len(names) > WORK_INODES else 0 :]:
            os.unlink(os.path.join(self._path, name))
        os.truncate(self._file, self.held_bytes // 2 if self.held_bytes > WORK_BYTES else 0)
        self.measure()

    def _names(self) -> list[str]:
        return [name for name in os.listdir(self._path) if name.isdigit()]


class LastPrune:
    """The newest prune, which may still run."""

    def __init__(self) -> None:
        self.began_at = uptime_s()
        self.running = True
        self.freed_bytes = self.records = 0
        self.error = ""

    def encode(self, now: float) -> bytes:
        """Prune."""
        return encode_fields(
            [
                (1, milliseconds(now - self.began_at)),
                (2, self.running),
                (3, self.freed_bytes),
                (4, self.records),
                (5, self.error),
            ]
        )


class DiskLook(Look[Space]):
    """Looks at the file system. `low` wakes the pruner."""

    name = "disk"
    period_s = 3.0

    def __init__(self, settings: ResponderSettings) -> None:
        super().__init__()
        self._settings = settings
        self.ballast = Ballast(settings)
        self.low = threading.Event()
        self.prunes = 0
        self.last: LastPrune | None = None

    def read(self) -> Space:
        """Raises OSError."""
        space = Space(self._settings.cache)
        if space.below(self._settings.prune_below_percent):
            self.low.set()
        return space

    def fields(self, result: Space, now: float) -> Fields:
        """Disk."""
        return [
            (2, result.total_bytes),
            (3, result.available_bytes),
            (4, result.total_inodes),
            (5, result.available_inodes),
            (6, self.ballast.held_bytes),
            (7, self.prunes),
            (8, self.last.encode(now) if self.last else None),
        ]


class Pruner:
    """Prunes if the disk is low, in a thread of its own: a prune may take minutes, and a full disk may hang."""

    def __init__(self, settings: ResponderSettings, disk: DiskLook) -> None:
        self._settings, self._disk = settings, disk

    def run(self) -> None:
        """Wait for the low mark and prune, for ever."""
        with contextlib.suppress(OSError):  # a file system that cannot be read is the look's to report
            self._disk.ballast.measure()
        self._hold_ballast()
        while True:
            self._disk.low.wait()
            reached = self.prune()
            self._hold_ballast()
            if not reached:
                time.sleep(RETRY_S if self._disk.last and self._disk.last.error else PAUSE_S)
            self._disk.low.clear()

    def prune(self) -> bool:
        """Prune until the mark is reached, or nothing is left that could be removed. Never raises an Exception."""
        last = self._disk.last = LastPrune()
        self._disk.prunes += 1
        log(INFO, "disk: space or inodes are low: pruning BuildKit's cache")
        reached = False
        try:
            reached = self._try_shares(last)
        except (BuildKitError, WireError, HpackError, OSError) as exc:
            last.error = str(exc)[:200]
        last.running = False
        said = last.error or ("" if reached else "builds use the rest")
        done = f"disk: pruned {last.records} records of {last.freed_bytes} bytes"
        log(WARNING if said else INFO, f"{done}: {said}" if said else done)
        return reached

    def _try_shares(self, last: LastPrune) -> bool:
        settings = self._settings
        for share in KEPT_SHARES:
            space = Space(settings.cache)
            if not space.below(settings.prune_until_percent):
                return True
            full = space.available_bytes < WORK_BYTES or (space.total_inodes and space.available_inodes < WORK_INODES)
            ballast = self._disk.ballast
            if full and (ballast.held_bytes or ballast.held_inodes):
                ballast.release_half()
                log(WARNING, f"disk: it is full; {ballast.held_bytes} bytes of the ballast are left")
            used = space.total_bytes - space.available_bytes
            for size in prune(settings.buildkit_socket, int(used * share), PRUNE_DEADLINE_S):
                last.freed_bytes += size
                last.records += 1
            time.sleep(SETTLE_S)
        return not Space(settings.cache).below(settings.prune_until_percent)

    def _hold_ballast(self) -> None:
        """Hold the ballast again, if that does not itself make the disk low."""
        settings = self._settings
        try:
            space = Space(settings.cache)
            space.available_bytes -= settings.ballast_bytes - self._disk.ballast.held_bytes
            space.available_inodes -= settings.ballast_inodes - self._disk.ballast.held_inodes
            if not space.below(settings.prune_below_percent):
                self._disk.ballast.take()
        except OSError as exc:
            log(WARNING, f"disk: the ballast cannot be held: {exc}")
