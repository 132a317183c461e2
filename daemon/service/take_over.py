"""Ends a control plane that hangs, so that a new one can take its place: never are there two.

The data plane says in its HELLO which process sits, and for how long it has said nothing. It asks a control plane every 2 s,
so one that is well is never silent for HUNG_S. A hung one holds the ports, the control socket and the seat. It cannot be
asked to leave, since it would have to run for that; and it must not wake up later and send a call that it had prepared. So
it is killed, by a pidfd (pidfd_open(2)), and its end is waited for before anything else is opened. What it was doing is in
its note, as after any other death.

It must be this user's process (or root's), and run this program: a process id may be another's by now, or be of another
namespace. So the data plane is asked once more when the pidfd is there: while it names the process as the one that sits, the
process lives, and the pidfd is that process's.
"""

import contextlib
import errno
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from bentpipe.daemon.planes.bounds import HELLO_S, HUNG_S, MESSAGE_BYTES
from bentpipe.daemon.planes.codec import ProtocolBroken, decode_message
from bentpipe.daemon.planes.records import HelloRecord
from bentpipe.daemon.planes.sockets import connect_private, plane_sockets
from bentpipe.daemon.planes.table import Plane

log = logging.getLogger("bentpipe")

LOOK_S = 0.5
END_S = 10.0
"""For a killed process to end. One that the kernel does not let go (uninterruptible sleep) cannot be replaced."""
PROGRAMS = ("bentpipe", "python")
"""What the command of a control plane contains, besides `serve`."""


class CannotTakeOver(OSError):
    """A control plane hangs, and cannot be replaced; `str()` says why."""


def end_hung_control_planes(folder: Path) -> None:
    """Look at each data plane of the folder. Raises CannotTakeOver.

    Blocks if a control plane sits: until it speaks, which one that is well does every 2 s, or for HUNG_S.
    """
    for path in plane_sockets(folder):
        holder = _silent_holder(path)
        if holder is not None:
            _end(path, holder)


def _silent_holder(path: Path) -> int | None:
    """The process that sits and has been silent for HUNG_S; None if nobody sits, or the one that does is well.

    One that has been silent for a moment may be well or may hang since then: it is watched until it speaks, or for HUNG_S.
    """
    began = time.monotonic()
    while True:
        watched_s = time.monotonic() - began
        pid, silent_s = _holder(path)
        if pid is None or silent_s < watched_s:
            return None
        if silent_s >= HUNG_S:
            return pid
        time.sleep(LOOK_S)


def _holder(path: Path) -> tuple[int | None, float]:
    """The process that sits there, and for how many seconds it has said nothing. A plane that does not say has none."""
    try:
        with contextlib.closing(connect_private(path)) as sock:
            if not select.select([sock], [], [], HELLO_S)[0]:
                return None, 0.0
            _, records = decode_message(sock.recv(MESSAGE_BYTES + 1), Plane.DATA)
    except (OSError, ProtocolBroken):
        return None, 0.0
    for record in records:
        if isinstance(record, HelloRecord) and len(record.holder) >= 2 and record.holder[0]:
            return record.holder[0], record.holder[1] / 1000
    return None, 0.0


def _end(path: Path, pid: int) -> None:
    why = f"the control plane (process {pid}) has hung for {HUNG_S:g} s and cannot be replaced"
    try:
        pid_fd = os.pidfd_open(pid)
    except OSError as exc:
        raise CannotTakeOver(exc.errno, f"{why}: {exc.strerror}") from exc
    try:
        if not _is_control_plane(pid):
            raise CannotTakeOver(errno.EPERM, f"{why}: it is not `bentpipe serve` of this user")
        if _holder(path)[0] != pid:
            return  # it has died meanwhile
        log.error("a control plane that hangs is ended", extra={"fields": {"pid": pid, "silent_s": HUNG_S}})
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
        if not select.select([pid_fd], [], [], END_S)[0]:
            raise CannotTakeOver(errno.EBUSY, f"{why}: it does not end, though it was killed")
    except PermissionError as exc:
        raise CannotTakeOver(exc.errno, f"{why}: {exc.strerror}") from exc
    finally:
        os.close(pid_fd)


def _is_control_plane(pid: int, geteuid: Callable[[], int] = os.geteuid) -> bool:
    """Whether the process is this user's, or this user is root, and its command is `bentpipe serve`."""
    try:
        user = Path(f"/proc/{pid}").stat().st_uid
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    mine = user == geteuid() or geteuid() == 0
    return mine and "serve" in command and any(name in part for name in PROGRAMS for part in command[:2])
