"""Measures the phases of this boot: when the kernel, cloud-init, buildkitd and the first build were done, as uptimes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time

from bentpipe.daemon.responder.buildkit import BuildKitLook
from bentpipe.daemon.responder.looks import WARNING, Look, log, milliseconds, uptime_s
from bentpipe.daemon.responder.wire import Fields

CLOUD_INIT_RESULT = "run/cloud-init/result.json"
"""cloud-init writes it at the end of its last stage (cloud-init, "Boot stages")."""
BOOTED_BY_SYSTEMD = "run/systemd/system"
"""sd_booted(3)."""
SYSTEMCTL = "systemctl"
USERSPACE = "UserspaceTimestampMonotonic"
"""When the machine's own systemd was started (org.freedesktop.systemd1(5)), in microseconds. Process 1 is older: the kernel
makes it first of all, and a RAM disk may run in it before."""
SYSTEMCTL_DEADLINE_S, SYSTEMCTL_TRIES = 10.0, 5
"""systemd answers late while a machine starts everything at once."""


@dataclasses.dataclass
class BootPhases:
    """When each phase was over; None: not yet, or unknown."""

    init_s: float | None = None
    cloud_init_s: float | None = None
    buildkit_s: float | None = None
    first_build_s: float | None = None


class BootLook(Look[BootPhases]):
    """Looks until all is known. `buildkit` is the responder's look at BuildKit, which is not asked again here."""

    name = "boot"

    def __init__(self, root: str, buildkit: BuildKitLook, systemctl: str = SYSTEMCTL) -> None:
        super().__init__()
        self._root, self._systemctl = root, systemctl
        self._tries_left = SYSTEMCTL_TRIES
        self._buildkit = buildkit
        self._phases = BootPhases()
        self._building = False

    def read(self) -> BootPhases:
        """Look at what is not known yet."""
        phases = self._phases
        if phases.init_s is None:
            phases.init_s = self._init_s()
        if phases.cloud_init_s is None:
            phases.cloud_init_s = self._cloud_init_s()
        if phases.buildkit_s is None:
            phases.buildkit_s = self._buildkit.done_at
        self._watch_builds()
        return dataclasses.replace(phases)

    def fields(self, result: BootPhases, now: float) -> Fields:
        """The fields of Boot."""
        times = (result.init_s, result.cloud_init_s, result.buildkit_s, result.first_build_s)
        return [(at, None if each is None else milliseconds(each)) for at, each in enumerate(times, 2)]

    def _init_s(self) -> float | None:
        """Ask systemd, a few times at most."""
        if not self._tries_left or not os.path.isdir(os.path.join(self._root, BOOTED_BY_SYSTEMD)):
            return None
        self._tries_left -= 1
        command = (self._systemctl, "show", f"--property={USERSPACE}", "--value")
        try:
            told = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=SYSTEMCTL_DEADLINE_S,
                check=True,
                stdin=subprocess.DEVNULL,
            )
            return int(told.stdout) / 1e6
        except (OSError, subprocess.SubprocessError, ValueError) as exc:
            log(WARNING, f"boot: systemd does not say when it was started: {exc}")
            return None

    def _cloud_init_s(self) -> float | None:
        try:
            written = os.stat(os.path.join(self._root, CLOUD_INIT_RESULT)).st_mtime
        except FileNotFoundError:
            return None
        # The wall clock may have been set since then; the file is then not of this boot, or from the future.
        at = uptime_s() - (time.time() - written)
        return at if 0 <= at <= uptime_s() else None

    def _watch_builds(self) -> None:
        builds = self._buildkit.result
        if self._phases.first_build_s is not None or builds is None:
            return
        if builds.count:
            self._building = True
        elif self._building:
            self._phases.first_build_s = uptime_s()
