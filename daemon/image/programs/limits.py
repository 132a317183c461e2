"""A systemd generator (systemd.generator(7)): at every boot, before any unit, it writes the limits that the machine sets.

CPUQuota= counts in percent of ONE CPU, so "95 % of the machine" is known only on the machine, and changes with its type. A
generator needs no daemon-reload and no unit that others wait for. It must never write limits that it is not sure of:
buildkitd.service asserts that its file is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bentpipe.daemon.image.programs.settings import (
    SLICE,
    SatelliteSettings,
    SetupError,
    limits_here,
    load_settings,
)

DROP_IN = "50-bentpipe-limits.conf"


def drop_in(settings: SatelliteSettings, proc: Path = Path("/proc")) -> str:
    """Return the drop-in of the slice for this machine. Raises SetupError."""
    limits = limits_here(settings, proc)
    lines = [
        "[Slice]",
        f"CPUQuota={limits.cpu_quota_percent}%",
        f"MemoryMax={limits.slice_bytes}",
        f"MemoryMin={settings.memory_buildkit_bytes}",
    ]
    if settings.io_max_bytes_per_s:
        # systemd takes the disk of the file system that a path is on.
        disk = settings.cache_device or "/"
        lines += [f"IO{way}BandwidthMax={disk} {settings.io_max_bytes_per_s}" for way in ("Read", "Write")]
    return "\n".join(lines) + "\n"


def main(folder: str) -> int:
    """Write the drop-in below `folder`, where systemd looks for generated units. Returns an exit code."""
    try:
        text = drop_in(load_settings())
    except SetupError as exc:
        _say(f"bentpipe: no limits, so BuildKit will not start: {exc}")
        return 1
    place = Path(folder) / f"{SLICE}.d"
    place.mkdir(parents=True, exist_ok=True)
    (place / DROP_IN).write_text(text)
    return 0


def _say(words: str) -> None:
    """A generator's standard error is lost before the journal runs; the kernel's log is not."""
    try:
        with Path("/dev/kmsg").open("w") as log:
            log.write(f"<3>{words}\n")
    except OSError:
        os.write(2, f"{words}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
