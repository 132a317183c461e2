"""The emulated region's capacity: which pools are empty. A pool is an instance type in a zone, on demand or Spot. Pure."""

import dataclasses
import enum


class Lack(enum.Enum):
    """How EC2 tells that a pool is empty."""

    REFUSED = "refused"
    """The call fails: InsufficientInstanceCapacity."""
    LATER = "later"
    """The call is accepted. A new instance is terminated then, and one that is started is stopped again."""


@dataclasses.dataclass(frozen=True, slots=True)
class EmptyPools:
    """Pools that are empty. None stands for every type, every zone, and both markets."""

    lack: Lack
    instance_type: str | None = None
    zone: str | None = None
    spot: bool | None = None
    code: str = "InsufficientInstanceCapacity"
    """Of the refusal."""

    def has(self, instance_type: str, zone: str, *, spot: bool) -> bool:
        """Whether the pool is one of them."""
        wanted = ((self.instance_type, instance_type), (self.zone, zone), (self.spot, spot))
        return all(mine in (None, asked) for mine, asked in wanted)
