"""Keeps room on the file system of BuildKit's cache: watches bytes and inodes, prunes at a low mark, and holds the ballast.

BuildKit collects garbage only after a build returns, and counts no inodes. The ballast is room that only pruning may use:
it is given up just before a prune on a full disk, since BuildKit must write to record what it removes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from bentpipe.responder.buildkit import BuildKitError, prune
from bentpipe.responder.hpack import HpackError
from bentpipe.responder.looks import INFO, WARNING, Look, log, milliseconds, uptime_s
from bentpipe.responder.settings import ResponderSettings
from bentpipe.responder.wire import Fields, WireError, encode_fields

KEPT_SHARES = (0.75, 0.5, 0.25, 0.0)
"""Of what is used: how much BuildKit may keep, try after try. It counts less than the file system does, and no inodes."""
PRUNE_DEADLINE_S = 600.0
"""Of one try. BuildKit goes on removing what it has begun to remove."""
PAUSE_S = 60.0
"""After a prune that has not reached its mark: the rest is in use by builds."""
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
        self.held_bytes = 0

    def take(self) -> None:
        """Hold it, if it is not held. Raises OSError."""
        os.makedirs(self._path, mode=0o700, exist_ok=True)
        file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if self._bytes and os.fstat(file).st_blocks * 512 < self._bytes:
                os.posix_fallocate(file, 0, self._bytes)
            self.held_bytes = os.fstat(file).st_blocks * 512
        finally:
            os.close(file)
        for number in range(self._inodes):
            os.close(os.open(os.path.join(self._path, str(number)), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))

    def release(self) -> None:
        """Give it up. Raises OSError."""
        for number in range(self._inodes):
            _unlink(os.path.join(self._path, str(number)))
        _unlink(self._file)
        self.held_bytes = 0


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


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
        self._hold_ballast()
        while True:
            self._disk.low.wait()
            reached = self.prune()
            self._hold_ballast()
            time.sleep(0 if reached else PAUSE_S)
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
            if space.available_bytes < settings.ballast_bytes or space.available_inodes < settings.ballast_inodes:
                self._disk.ballast.release()
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
            space.available_inodes -= settings.ballast_inodes
            if not space.below(settings.prune_below_percent):
                self._disk.ballast.take()
        except OSError as exc:
            log(WARNING, f"disk: the ballast cannot be held: {exc}")
