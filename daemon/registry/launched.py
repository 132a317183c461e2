"""The contract of the satellites that LaunchSatellite has made, which stand in no configuration.

Every host reads them again and again, and serves them beside those of the configuration. `tests/beds/contracts/launched.py`
tests these laws:

1. A name stands for one satellite, launched or registered. Of all who add it at once, on any host, one does, and the
   others are told what it is.
2. An org never has more satellites than the limit that each of the callers names, however many add at once.
3. A satellite that is being removed stays, and its name with it, until its machine is gone. Then `remove` deletes the one
   that it is given, and no other that has taken the name since.
4. A satellite has one change under way at most. Of all who begin one at once, one does, and the others are told which.
   A change ends once, however many hosts carry it out, and a removal ends it.
5. A row that cannot be read affects its own satellite and no other.
"""

import dataclasses
import re
from typing import Protocol

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.contract import StoreConflict
from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of


class OrgFull(StoreConflict):
    """The org has as many launched satellites as it may have."""

    def __init__(self, org: str, most: int) -> None:
        super().__init__(f"org {org} has {most} launched satellites, which is its limit")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class SatelliteChange:
    """What a satellite is to become."""

    size: str
    platform: str
    replace: bool
    """Its machine is destroyed, with its disks, and another one is launched. Otherwise the machine is changed."""
    at_us: int
    """Microseconds since the epoch; tells a change from a later one."""

    def has_target_of(self, other: "SatelliteChange") -> bool:
        """Whether both lead to the same."""
        return dataclasses.replace(self, at_us=0) == dataclasses.replace(other, at_us=0)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class LaunchedSatellite:
    """A satellite, with the machine type that it has: `size` and `platform` name it."""

    key: SatelliteKey
    size: str
    platform: str
    principal: str
    """Who launched it."""
    created_us: int
    """Microseconds since the epoch; with the key it tells a satellite from a later one of the same name."""
    removing: bool = False
    """Its machine is being destroyed."""
    change: SatelliteChange | None = None
    """It is being changed."""

    def changed(self) -> "LaunchedSatellite":
        """The satellite when its change is done."""
        if self.change is None:
            return self
        return dataclasses.replace(self, size=self.change.size, platform=self.change.platform, change=None)


def launched_satellite(
    org: object,
    name: object,
    size: object,
    platform: object,
    principal: object,
    created_us: object,
    removing: object,
    change: SatelliteChange | None = None,
) -> LaunchedSatellite:
    """Check a satellite's columns, whatever they hold. Raises MalformedRow."""
    for column, value in (("org", org), ("name", name), ("size", size)):
        if not re.match(NAME_PATTERN, text_of(value, column)):
            raise MalformedRow(f"{column} is not a valid name")
    return LaunchedSatellite(
        SatelliteKey(text_of(org, "org"), text_of(name, "name")),
        text_of(size, "size"),
        text_of(platform, "platform"),
        text_of(principal, "principal"),
        whole_of(created_us, "created_us"),
        bool(removing),
        change,
    )


def satellite_change(size: object, platform: object, replace: object, at_us: object) -> SatelliteChange:
    """Check a change's columns, whatever they hold. Raises MalformedRow."""
    if not re.match(NAME_PATTERN, text_of(size, "size")):
        raise MalformedRow("size is not a valid name")
    return SatelliteChange(
        text_of(size, "size"), text_of(platform, "platform"), bool(replace), whole_of(at_us, "at_us")
    )


class LaunchedStore(Protocol):
    """Every method raises StoreError. Each may be repeated after an answer was lost."""

    async def satellites(self) -> tuple[LaunchedSatellite, ...]:
        """All satellites, by key. A row that cannot be read is left out and logged."""
        ...

    async def add(self, satellite: LaunchedSatellite, *, most: int) -> LaunchedSatellite:
        """Add a satellite, unless there is one of its name. Returns the one that there is then.

        Raises NameTaken if a satellite of its name is registered, OrgFull if its org has `most` already, MalformedRow if
        the row of its name cannot be read.
        """
        ...

    async def find(self, key: SatelliteKey) -> LaunchedSatellite | None:
        """The satellite of a name; None if there is none. Raises MalformedRow if its row cannot be read."""
        ...

    async def begin_removal(self, satellite: LaunchedSatellite) -> None:
        """Say that it is being removed, and is not changed any more. Does nothing if it is gone."""
        ...

    async def begin_change(self, satellite: LaunchedSatellite, change: SatelliteChange) -> LaunchedSatellite | None:
        """Say that it is being changed, unless it is being changed or removed already, or is not what `satellite` says.

        Returns what there is then; None if it is gone.
        """
        ...

    async def end_change(self, satellite: LaunchedSatellite, change: SatelliteChange, *, done: bool) -> bool:
        """Say that the change is done, or given up. Returns False if it is not under way any more."""
        ...

    async def remove(self, satellite: LaunchedSatellite) -> None:
        """Delete it. Does nothing if it is gone."""
        ...

    async def aclose(self) -> None:
        """Give up what is held open; nothing may be called afterwards."""
        ...
