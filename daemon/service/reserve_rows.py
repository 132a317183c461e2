"""The reserve as the commands show it. Pure."""

import dataclasses

from bentpipe.proto import operations_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True)
class ReserveRow:
    """The reserve of a machine type as it is shown."""

    size: str
    platform: str
    wanted: int
    ready: int
    filling: int
    reason: str

    @property
    def words(self) -> str:
        """One line for people."""
        why = f": {self.reason}" if self.reason else ""
        return f"reserve of {self.size} ({self.platform}): {self.ready} of {self.wanted} ready, {self.filling} filling{why}"


def reserve_rows(answer: pb.GetActivityResponse) -> list[ReserveRow]:
    """The reserves of an answer; none if the caller may not launch satellites."""
    return [
        ReserveRow(each.size, each.platform, each.wanted, each.ready, each.filling, each.reason)
        for each in answer.reserve
    ]
