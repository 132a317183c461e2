"""Finds the data plane of a configuration, or starts one: a process of its own, which outlives its starter.

It is a session and a process group of its own (setsid(2)), so that Ctrl-C in a terminal reaches `serve` alone, and `serve`
then lets the data plane drain. Its log goes where that of its starter goes.
"""

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import trio

from bentpipe.daemon.planes.sockets import connect_private, plane_sockets
from bentpipe.daemon.private_socket import peer_of

log = logging.getLogger("bentpipe")

START_S = 30.0
"""From the start of the process to its socket: it reads keys, and on a busy host Python itself takes seconds."""
LOOK_S = 0.05
PROGRAM = "from bentpipe.daemon.service.cli import main; main(prog_name='bentpipe')"


class NoDataPlane(OSError):
    """The data plane could not be started; its own log says why."""


def is_live(path: Path) -> bool:
    """Whether a data plane still listens there. Never waits."""
    try:
        connect_private(path).close()
    except BlockingIOError:
        return True  # it has not accepted earlier ones yet
    except OSError:
        return False
    return True


def live_planes(folder: Path) -> list[Path]:
    """The sockets of the data planes that run, and remove those of processes that have died. Never waits."""
    found = []
    for path in plane_sockets(folder):
        try:
            connect_private(path).close()
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            found.append(path)  # it has not accepted earlier ones yet
        else:
            found.append(path)
    return found


class Children:
    """The data planes that this process has started, so that none of them stays a zombie (wait(2))."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def keep(self, process: subprocess.Popen[bytes] | None) -> None:
        """Take one over."""
        if process is not None:
            self._processes.append(process)

    def reap(self) -> bool:
        """Let go of those that have ended. Returns whether any is left."""
        self._processes = [each for each in self._processes if each.poll() is None]
        return bool(self._processes)


async def find_or_start_plane(config_path: Path, folder: Path, *, is_external: bool) -> subprocess.Popen[bytes] | None:
    """Return once a data plane listens in `folder`: None if one was there, else the process that was started.

    With `is_external` none is started, since it has a unit of its own, for which this waits. Started here it would be in the
    unit of the control plane, have that unit's rights, and end with it. Raises NoDataPlane.
    """
    if live_planes(folder):
        return None
    if is_external:
        with trio.move_on_after(START_S):
            while not live_planes(folder):
                await trio.sleep(LOOK_S)
            return None
        raise NoDataPlane(errno.ENOENT, f"no data plane listens in {folder}: start bentpipe-dataplane@a.service")
    process = await trio.to_thread.run_sync(_start, config_path, folder)
    log.info("data plane started", extra={"fields": {"pid": process.pid}})
    try:
        with trio.move_on_after(START_S):
            while process.poll() is None:
                if live_planes(folder):
                    return process
                await trio.sleep(LOOK_S)
            words = f"the data plane has ended with code {process.returncode} before it listened: see above"
            raise NoDataPlane(errno.ECONNREFUSED, words)
    except trio.Cancelled:
        process.terminate()  # it has no clients yet, and nobody would come back to it
        raise
    process.terminate()
    raise NoDataPlane(errno.ETIMEDOUT, f"the data plane did not listen within {START_S:g} s")


def stop_planes(folder: Path) -> None:
    """Have all data planes of the folder drain and end, as SIGTERM does. Does not wait."""
    for path in live_planes(folder):
        with contextlib.suppress(OSError), connect_private(path) as sock:
            os.kill(peer_of(sock).pid, signal.SIGTERM)
            log.info("a data plane is stopped", extra={"fields": {"plane": path.name}})


def _start(config_path: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-c", PROGRAM, "dataplane", "--config", str(config_path.absolute())]
    command += ["--planes", str(folder.absolute())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
