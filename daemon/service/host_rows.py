"""How the host takes clients, as the commands show it. Pure."""

import dataclasses
from collections.abc import Mapping

from bentpipe.proto import operations_pb2 as pb

REASONS_SHOWN = 4
"""Of the reasons why clients were not admitted by snapshots, the most frequent ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class DataPlaneRow:
    """A data plane as it is shown."""

    name: str
    pid: int
    spliced: int
    draining: bool

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.name} (process {self.pid}): {self.spliced} spliced{', draining' if self.draining else ''}"


@dataclasses.dataclass(frozen=True, slots=True)
class HostLook:
    """The host as `bentpipe top` shows it."""

    connections: str
    data_planes: tuple[DataPlaneRow, ...]
    by_snapshots: bool
    admitted: int
    unadmitted: Mapping[str, int]
    gates: int

    @property
    def lines(self) -> list[str]:
        """For people."""
        if not self.data_planes:
            return [self.connections]
        planes = "; ".join(each.words for each in self.data_planes)
        return [self.connections, f"data planes: {planes}", self._admission]

    @property
    def _admission(self) -> str:
        if not self.by_snapshots:
            return "the daemon admits every client"
        most = sorted(self.unadmitted.items(), key=lambda each: (-each[1], each[0]))
        shown = [f"{reason} {count}" for reason, count in most[:REASONS_SHOWN]]
        if len(most) > REASONS_SHOWN:
            shown.append(f"others {sum(count for _, count in most[REASONS_SHOWN:])}")
        asked = sum(self.unadmitted.values())
        why = f" ({', '.join(shown)})" if shown else ""
        return f"admitted by snapshots {self.admitted}, asked {asked}{why}; satellites in reach {self.gates}"


def host_look(answer: pb.GetActivityResponse) -> HostLook | None:
    """What an answer tells of the host; None if the caller may not know it, or the daemon is an older one."""
    if not answer.HasField("host"):
        return None
    host = answer.host
    planes = tuple(DataPlaneRow(each.name, each.pid, each.spliced, each.draining) for each in host.data_planes)
    return HostLook(host.connections, planes, host.by_snapshots, host.admitted, dict(host.unadmitted), host.gates)
