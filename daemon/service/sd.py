"""What a service needs of systemd: notification, watchdog and socket activation.

Sources: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3). It is written here and no library is linked, because each is
a few lines of a stable, documented protocol.
"""

import atexit
import functools
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

import trio

LISTEN_FDS_START = 3
"""First descriptor that systemd passes (sd_listen_fds(3))."""

log = logging.getLogger("bentpipe")


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send `state` (for example "READY=1") to the service manager. False if there is none, or if it does not read."""
    target = environment.get("NOTIFY_SOCKET")
    if not target:
        return False
    try:
        _notify_socket().sendto(state.encode(), "\0" + target[1:] if target.startswith("@") else target)
    except OSError as exc:  # a manager that restarts or does not read is not a reason to end the daemon
        log.warning("systemd cannot be told", extra={"fields": {"state": state.partition("=")[0], "error": str(exc)}})
        return False
    return True


def is_service(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether systemd has started this process for a unit (systemd.exec(5)). Shells have INVOCATION_ID, but not these."""
    return bool(environment.get("NOTIFY_SOCKET")) or environment.get("SYSTEMD_EXEC_PID") == str(os.getpid())


@functools.cache
def _notify_socket() -> socket.socket:
    """The socket is opened once and kept, so that the watchdog works with no descriptor left.

    Never blocks. Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    atexit.register(sock.close)
    return sock


def notify_reloading() -> None:
    """Tell systemd that a reload begins, with the time that Type=notify-reload needs (sd_notify(3)). READY=1 ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Half of WATCHDOG_USEC in seconds, as sd_watchdog_enabled(3) advises; None if no watchdog waits for this process."""
    usec = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


async def run_watchdog(well: Callable[[], bool] = lambda: True) -> None:
    """Ping the watchdog from the Trio thread for ever while all is `well`, so that a stuck loop is noticed.

    Ends if there is no watchdog.
    """
    interval_s = watchdog_interval_s()
    while interval_s is not None:
        if well():
            notify("WATCHDOG=1")
        await trio.sleep(interval_s)


def listen_sockets(environment: Mapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """Take the sockets that systemd passed, by FileDescriptorName=; empty without socket activation."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for index in range(count):
        name = names[index] if index < len(names) and names[index] else "unknown"
        fd = LISTEN_FDS_START + index
        os.set_inheritable(fd, False)
        found.setdefault(name, []).append(socket.socket(fileno=fd))
    return found
