"""Chooses how satellites are held together: the best kind that this host has, or the one that is demanded."""

from pathlib import Path

from bentpipe.daemon.keeper.cgroup import CgroupTree, find_own_cgroup
from bentpipe.daemon.keeper.containment import PROC, Isolation, Isolator, ProcessGroups
from bentpipe.daemon.keeper.freezer import FreezerTree, find_own_freezer
from bentpipe.daemon.keeper.state import KeeperState


def open_isolator(wanted: Isolation | None = None) -> Isolator:
    """Open the best isolation there is, or the `wanted` one. Kills what a dead keeper has left. Close it after use.

    Raises OSError if `wanted` is not available.
    """
    if wanted is Isolation.PROCESS_GROUP:
        return ProcessGroups("asked for")
    reasons = []
    for kind in (CgroupTree, FreezerTree):
        if wanted not in (None, kind.isolation):
            continue
        try:
            return kind(_parent_of(kind.isolation))
        except OSError as error:
            if wanted is not None:
                raise
            reasons.append(f"no {kind.isolation.value}: {error.strerror or error}")
    return ProcessGroups("; ".join(reasons))


def resume_isolator(state: KeeperState) -> Isolator:
    """Go on with what an earlier program of this process had. Raises KeyError for a kind that is not known."""
    isolation = Isolation[state.isolation]
    if isolation is Isolation.PROCESS_GROUP or state.isolation_folder is None or state.isolation_lock_fd is None:
        return ProcessGroups(state.detail)
    kind = CgroupTree if isolation is Isolation.CGROUP else FreezerTree
    return kind(state.isolation_folder.parent, (state.isolation_folder, state.isolation_lock_fd))


def _parent_of(isolation: Isolation) -> Path:
    find = find_own_cgroup if isolation is Isolation.CGROUP else find_own_freezer
    parent = find((PROC / "self/mountinfo").read_text(), (PROC / "self/cgroup").read_text())
    if parent is None:
        raise FileNotFoundError(f"no {isolation.value} is mounted")
    return parent
