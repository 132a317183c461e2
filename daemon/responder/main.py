"""Starts the responder: `python3 -I -S responder.py /etc/bentpipe/responder.json`."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Callable

from bentpipe.daemon.responder.boot import BootLook
from bentpipe.daemon.responder.buildkit import BuildKitLook
from bentpipe.daemon.responder.disk import DiskLook, Pruner
from bentpipe.daemon.responder.kills import KillsLook
from bentpipe.daemon.responder.looks import INFO, WARNING, log, start_thread, write_log
from bentpipe.daemon.responder.machine import BuildsLook, MachineLook
from bentpipe.daemon.responder.network import NetworkLook
from bentpipe.daemon.responder.scheduling import real_time
from bentpipe.daemon.responder.server import ResponderServer, TlsLook
from bentpipe.daemon.responder.service import ResponderService
from bentpipe.daemon.responder.settings import ResponderSettings, SettingsError, load_settings

STACK_BYTES = 512 << 10
"""Of each thread: locked memory is real memory, and the default is 8 MiB."""
MCL_CURRENT, MCL_FUTURE = 1, 2
M_ARENA_MAX = -8
"""mallopt(3): one arena for all threads."""
EX_USAGE, EX_CONFIG = 64, 78
"""sysexits.h."""


def lock_memory() -> bool:
    """Keep all memory of this process in RAM, so that an answer waits for no disk (mlockall(2))."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        library.mallopt(M_ARENA_MAX, 1)
        if library.mlockall(MCL_CURRENT | MCL_FUTURE) == 0:
            return True
        log(WARNING, f"memory cannot be locked: {os.strerror(ctypes.get_errno())}")
    except (OSError, AttributeError) as exc:
        log(WARNING, f"memory cannot be locked: {exc}")
    return False


class Notifier:
    """Tells systemd that the responder is ready, and that its loop goes on (sd_notify(3))."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._period_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 3e6
        self._next = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def say(self, text: str) -> None:
        """Send one message, if there is a manager that takes it now."""
        if self._address:
            try:
                self._socket.sendto(text.encode(), self._address)
            except OSError as exc:
                log(WARNING, f"systemd does not listen: {exc}")

    def beat(self) -> None:
        """Feed the watchdog, often enough."""
        now = time.monotonic()
        if self._period_s and now >= self._next:
            self._next = now + self._period_s
            self.say("WATCHDOG=1")


def build(settings: ResponderSettings, beat: Callable[[], None], root: str = "/") -> ResponderServer:
    """Make the server and start the looks. `root` is where /proc and /sys are. Raises OSError."""
    cgroup = os.path.join(root, "sys/fs/cgroup", settings.builds_cgroup.strip("/"))
    buildkit = BuildKitLook(settings.buildkit_socket)
    disk = DiskLook(settings)
    machine, builds, network = MachineLook(root), BuildsLook(cgroup), NetworkLook(root, cgroup)
    kills = KillsLook(root, cgroup, settings, buildkit)
    sections = {8: machine.section, 9: builds.section, 10: buildkit.section}
    boot = BootLook(root, buildkit)
    sections.update({11: disk.section, 12: kills.section, 13: network.section, 14: boot.section})
    service = ResponderService(root, sections, buildkit.age_s)
    service.memory_locked = lock_memory()
    tls = TlsLook(settings) if settings.certificate else None
    server = ResponderServer(settings, service, tls, beat)
    if tls is not None:
        tls.look()
        start_thread(tls.run, tls.name)
    for run in (machine.run, builds.run, buildkit.run, disk.run, kills.run, network.run, boot.run):
        start_thread(run, "look")
    if settings.prune_below_percent:
        start_thread(Pruner(settings, disk).run, "prune")
    return server


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM. Returns the exit code."""
    if len(arguments) != 2:
        sys.stderr.write("usage: responder.py SETTINGS.json\n")
        return EX_USAGE
    threading.stack_size(STACK_BYTES)
    notifier = Notifier()
    try:
        settings = load_settings(arguments[1])
        if refused := real_time.begin(settings.real_time_priority):
            log(WARNING, f"there is no real-time priority, so a build with one delays the answers: {refused}")
        server = build(settings, notifier.beat)
    except SettingsError as exc:
        sys.stderr.write(f"<3>{arguments[1]}: {exc}\n")
        return EX_CONFIG
    start_thread(write_log, "log")

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log(INFO, f"serving on port {server.port}")
    notifier.say("READY=1")
    server.run()
    notifier.say("STOPPING=1")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
