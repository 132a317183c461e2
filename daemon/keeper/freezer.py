"""The same as `cgroup` with version 1, on hosts that have no usable version 2: the freezer controller.

Version 1 has no cgroup.kill. Frozen processes die of SIGKILL only once they are thawed, so a kill freezes, signals and
thaws. A process that is forked meanwhile is found by the next kill. The kernel's
Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst is the reference.
"""

import signal
from pathlib import Path

from bentpipe.daemon.keeper.cgroup import Cgroup, CgroupTree, find_mounted
from bentpipe.daemon.keeper.containment import Isolation, signal_process

CONTROLLER = "freezer"


def find_own_freezer(mountinfo: str, own: str) -> Path | None:
    """Find the folder of our own cgroup in the freezer's hierarchy, as `cgroup.find_own_cgroup` does."""
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if CONTROLLER in controllers.split(","):
            return find_mounted(mountinfo, path, lambda kind, options: kind == "cgroup" and CONTROLLER in options)
    return None


class FreezerCgroup(Cgroup):
    """Containment by a cgroup of version 1."""

    def freeze(self) -> None:
        """Begin to freeze."""
        self._write_state("FROZEN")

    def is_frozen(self) -> bool:
        """Ask the kernel; reading drives the freezing on."""
        return (self._folder / "freezer.state").read_text().strip() == "FROZEN"

    def thaw(self) -> None:
        """Undo the freezing."""
        self._write_state("THAWED")

    def kill(self) -> None:
        """Kill all that live now. Does nothing if the cgroup is gone."""
        if not self._folder.exists():
            return
        self.freeze()
        for pid in self.pids():
            signal_process(pid, signal.SIGKILL)
        self.thaw()

    def is_empty(self) -> bool:
        """Look for members: a zombie leaves its cgroup when it dies."""
        return not self.pids()

    def _write_state(self, state: str) -> None:
        (self._folder / "freezer.state").write_text(state)


class FreezerTree(CgroupTree):
    """The keeper's own part of the freezer's hierarchy."""

    isolation = Isolation.FREEZER
    kind = FreezerCgroup
    needed = ("cgroup.procs", "freezer.state")
