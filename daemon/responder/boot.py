"""Measures the phases of this boot: when the kernel, cloud-init, buildkitd and the first build were done, as uptimes."""

from __future__ import annotations

import dataclasses
import os
import time

from bentpipe.daemon.responder.buildkit import BuildKitLook
from bentpipe.daemon.responder.looks import Look, milliseconds, uptime_s
from bentpipe.daemon.responder.machine import read_text
from bentpipe.daemon.responder.wire import Fields

CLOUD_INIT_RESULT = "run/cloud-init/result.json"
"""cloud-init writes it at the end of its last stage (cloud-init, "Boot stages")."""
START_FIELD = 19
"""Of /proc/PID/stat after the name, which is in brackets: starttime, in ticks since the boot (proc(5), field 22)."""


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

    def __init__(self, root: str, buildkit: BuildKitLook) -> None:
        super().__init__()
        self._root = root
        self._buildkit = buildkit
        self._phases = BootPhases()
        self._building = False

    def read(self) -> BootPhases:
        """Look at what is not known yet."""
        phases = self._phases
        if phases.init_s is None:
            stat = read_text(os.path.join(self._root, "proc/1/stat")).rpartition(")")[2].split()
            phases.init_s = int(stat[START_FIELD]) / os.sysconf("SC_CLK_TCK")
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
