"""The alternatives of a machine, and what is remembered of their capacity. Pure: the time is given.

Capacity belongs to a pool of EC2: an instance type, in a zone, on demand or Spot. Machines of one pool share what is
remembered. It is bounded by the alternatives of the configuration, and ages out.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from bentpipe.config.ec2_machine import MachineTypeEc2Section, SatelliteEc2Section

LACKING_S = 180.0
"""For so long an alternative that had no capacity is tried after all others. Karpenter leaves an exhausted offering alone
for 3 minutes, too."""
WORKED_S = 600.0
"""For so long the alternative that worked last is tried first. Then the order of the configuration counts again: it may be
one of price."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alternative:
    """One way to launch a machine."""

    template: str
    instance_type: str | None
    """None: the template's."""
    zone: str | None = None
    subnet: str | None = None
    spot: bool = False
    is_only: bool = False
    """The section lists no alternatives, and this is what itself says."""

    @property
    def name(self) -> str:
        """Names it in records, in tokens, and to people; "" if it is the only one."""
        return "" if self.is_only else self.words

    @property
    def words(self) -> str:
        """What it is, for people."""
        where = self.subnet or self.zone
        kind = "Spot" if self.spot else ""
        return " ".join(
            filter(None, (self.instance_type or "the template's type", kind, f"in {where}" if where else ""))
        )

    def takes_place_in(self, zone: str, subnet: str) -> bool:
        """Whether a machine in this zone and subnet could have been launched by it."""
        return self.zone in (None, zone) and self.subnet in (None, subnet)


def alternatives_of(section: SatelliteEc2Section) -> tuple[Alternative, ...]:
    """Read the section, which has a launch template."""
    template, default = section.launch_template or "", section.instance_type
    if not isinstance(section, MachineTypeEc2Section) or not section.alternative:
        return (Alternative(template, default, is_only=True),)
    return tuple(
        Alternative(template, each.instance_type or default, each.zone, each.subnet, each.spot)
        for each in section.alternative
    )


class CapacityMemory:
    """Which pools had no capacity, and which had. `now` is in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._lacked: dict[Alternative, float] = {}
        self._worked: dict[Alternative, float] = {}

    def lacked(self, alternative: Alternative, now: float) -> None:
        """It had no capacity."""
        self._lacked[_pool(alternative)] = now
        self._worked.pop(_pool(alternative), None)

    def worked(self, alternative: Alternative, now: float) -> None:
        """It had capacity."""
        self._worked[_pool(alternative)] = now
        self._lacked.pop(_pool(alternative), None)

    def is_lacking(self, alternative: Alternative, now: float) -> bool:
        """Whether it has lately had no capacity."""
        return now < self._lacked.get(_pool(alternative), -math.inf) + LACKING_S

    def ordered(self, alternatives: Sequence[Alternative], now: float) -> list[Alternative]:
        """What worked last comes first, then the order of the configuration; what lacked capacity comes last, the
        longest ago first."""
        lacking = sorted((each for each in alternatives if self.is_lacking(each, now)), key=self._lacked_at)
        others = [each for each in alternatives if each not in lacking]
        newest = max(others, key=self._worked_at, default=None)
        if newest is not None and now < self._worked_at(newest) + WORKED_S:
            others.sort(key=lambda each: each is not newest)
        return [*others, *lacking]

    def any_left(self, alternatives: Iterable[Alternative], now: float) -> bool:
        """Whether one of them has not lately had no capacity."""
        return any(not self.is_lacking(each, now) for each in alternatives)

    def _lacked_at(self, alternative: Alternative) -> float:
        return self._lacked[_pool(alternative)]

    def _worked_at(self, alternative: Alternative) -> float:
        return self._worked.get(_pool(alternative), -math.inf)


def _pool(alternative: Alternative) -> Alternative:
    """What shares its capacity: with a type of its own, the template does not matter."""
    template = alternative.template if alternative.instance_type is None else ""
    return dataclasses.replace(alternative, template=template, is_only=False)
