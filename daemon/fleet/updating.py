"""What an update of a launched satellite changes, and the steps by which its machine becomes that.

Nothing is lost that the client has not given up: a machine is replaced only if the client drops its cache. Otherwise the
machine is stopped and changed with its disks kept, and if that is not possible the update is refused before it begins.
"""

import dataclasses
from collections.abc import Mapping

from bentpipe.config.model import MachineTypeSection, SatelliteSection
from bentpipe.daemon.errors import InvalidRequest, NotServed
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.registry.launched import LaunchedSatellite, SatelliteChange

SENT_ALWAYS = "linux/amd64"
"""The Earthly CLI sends this platform with every update, so it is not a wish."""
ITS_OWN_FILES = (
    "the satellite is a command on the edge host, which keeps its files where it likes: its cache is not dropped"
)
OTHER_PLATFORM = "a machine does not change its platform"
OTHER_IMAGE = "the new size has other settings of what runs on the machine, which it gets at its launch only"
DROP_CACHE = "with --drop-cache another machine takes its place, whose cache is empty"

Types = Mapping[tuple[str, str], MachineTypeSection]
"""The machine types of the configuration, by size and platform."""


@dataclasses.dataclass(frozen=True, slots=True)
class WantedUpdate:
    """What a client wants. What is empty stays as it is."""

    size: str = ""
    platform: str = ""
    drop_cache: bool = False


def words_of(types: Types) -> str:
    """The machine types that there are, for people."""
    return ", ".join(f"{size} ({platform})" for size, platform in types)


def decide_change(row: LaunchedSatellite, wanted: WantedUpdate, types: Types, now_us: int) -> SatelliteChange | None:
    """What the satellite is to become; None if it is that already. Raises InvalidRequest, NotServed."""
    size = wanted.size or row.size
    platform = row.platform if wanted.platform in ("", SENT_ALWAYS) else wanted.platform
    if (size, platform) not in types:
        raise InvalidRequest(
            f"no machine type has size {size!r} and platform {platform!r}; there are: {words_of(types)}"
        )
    if wanted.drop_cache and types[row.size, row.platform].process is not None:
        raise NotServed(ITS_OWN_FILES)
    if (size, platform) == (row.size, row.platform) and not wanted.drop_cache:
        return None
    return SatelliteChange(size, platform, wanted.drop_cache, now_us)


async def check_possible(satellite: Satellite, row: LaunchedSatellite, change: SatelliteChange, types: Types) -> None:
    """Raises InvalidRequest if the machine cannot become that with its disks kept; ProviderError."""
    if change.replace:
        return
    objection = objection_of_types(row, change, types)
    if not objection:
        objection = await satellite.calls.objection_to(section_of(row, change, types))
    if objection:
        raise InvalidRequest(f"{objection}; {DROP_CACHE}")


def objection_of_types(row: LaunchedSatellite, change: SatelliteChange, types: Types) -> str:
    """Why a machine of the one type does not become one of the other, whatever provider it has; "" if it may."""
    if change.platform != row.platform:
        return OTHER_PLATFORM
    same = types[row.size, row.platform].image == types[change.size, change.platform].image
    return "" if same else OTHER_IMAGE


def section_of(row: LaunchedSatellite, change: SatelliteChange, types: Types) -> SatelliteSection:
    """The satellite's section when the change is done. Raises KeyError if this host has no such machine type."""
    return types[change.size, change.platform].satellite(row.key.org, row.key.name)


async def adapt_machine(satellite: Satellite, section: SatelliteSection) -> bool:
    """Take the next step towards `section` with the disks kept. Returns whether it was the last. Raises ProviderError."""
    if not await satellite.calls.lay_down():
        return False
    await satellite.calls.adapt(section)
    return True
