"""What the poller knows of one machine, and the tasks that wait for a change of it. It must never make a call."""

import collections
import dataclasses
from collections.abc import Awaitable, Callable

import trio

from bentpipe.config.ec2_machine import SatelliteEc2Section
from bentpipe.daemon.model import Machine, MachineId, MachineState
from bentpipe.daemon.providers.ec2.alternatives import Alternative
from bentpipe.daemon.providers.ec2.descriptions import SATELLITE_TAG, Description, Mark

NO_INSTANCE = "EC2 knows no such instance"


@dataclasses.dataclass(frozen=True, slots=True)
class Ec2Machine:
    """The configuration of a machine. `satellite` is ORG/NAME, the value of its tag."""

    satellite: str
    section: SatelliteEc2Section
    user_data: Callable[[str], Awaitable[bytes]] | None = None
    """Makes the user data of a launch from its token, always the same from the same token. Raises ProviderError."""
    own_data: Callable[[str], Awaitable[bytes]] | None = None
    """The same, with only what this machine alone has: for a machine that has the rest already."""
    tag: str = SATELLITE_TAG
    """Which tag has `satellite` as its value."""


Hosts = collections.defaultdict[str, set[MachineId]]
"""By host of an address: the machines that were last seen at it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outdated:
    """What EC2 said before our newest call. For a while after the call, the same answer means nothing."""

    instance_id: str | None
    raw_state: str
    launched_at: float
    until: float

    def fits(self, seen: Description, began: float) -> bool:
        """Whether a look that was asked for at `began` shows nothing newer than that."""
        same = (seen.instance_id, seen.raw_state, seen.launched_at)
        return began < self.until and same == (self.instance_id, self.raw_state, self.launched_at)


@dataclasses.dataclass(slots=True)
class Entry:
    """One machine. `look` is None until EC2 has shown the instance; times are trio's."""

    machine_id: MachineId
    machine: Ec2Machine
    mark: Mark
    instance_id: str | None
    hosts: Hosts
    look: Machine | None = None
    seen: Description | None = None
    asked: bool = False
    """EC2 has been asked, and has answered."""
    seen_at: float = float("-inf")
    """When the newest look was asked for."""
    relied_at: float = float("-inf")
    """When the fleet last asked whether it still has its address."""
    lost_at: float = float("-inf")
    """When it was last seen to lose its instance."""
    mismatch: tuple[str, float] | None = None
    """The newest launch token that EC2 has refused as used for something else, and since when."""
    launched_by: tuple[str, Alternative] | None = None
    """The newest instance that was launched here, and by which alternative."""
    judged: tuple[tuple[str, float], bool] | None = None
    """Which start of which instance was last found to lack capacity, and whether an alternative was left then."""
    assigned: tuple[str, float] | None = None
    """The instance of the reserve that was given to it last, and until when EC2 may show the tags that it had before."""
    unproven: str = ""
    """The instance of the reserve that it has, until that has run once."""
    acted_at: float = float("-inf")
    visible_by: float = float("-inf")
    outdated: Outdated | None = None
    objection: str = ""
    """Why its instance is not used, by its tags."""
    rivals: tuple[str, ...] = ()
    """Other living instances with the satellite's tags."""
    changed: trio.Event = dataclasses.field(default_factory=trio.Event)

    @property
    def lost(self) -> bool:
        """It has no instance: the poller looks for one by tags."""
        gone = self.look is not None and self.look.state is MachineState.TERMINATED
        return self.instance_id is None or (gone and self.machine.section.instance_id is None)

    @property
    def host(self) -> str:
        """The address's host; "" if it has none now."""
        return "" if self.look is None or self.look.address is None else self.look.address.host

    def shown(self) -> Machine | None:
        """The machine that a waiter gets; None if it is not known yet."""
        if self.look is None and self.asked:
            return Machine(self.machine_id, MachineState.TERMINATED, reason=NO_INSTANCE)
        return self.look

    def _moved(self, before: str) -> None:
        self.hosts[before].discard(self.machine_id)
        if not self.hosts[before]:
            del self.hosts[before]
        if self.host:
            self.hosts[self.host].add(self.machine_id)

    def show(self, look: Machine | None) -> None:
        """Set the look, and tell the waiting tasks."""
        was_lost = self.asked and self.lost
        before, host = self.shown(), self.host
        self.look = look
        if self.host != host:
            self._moved(host)
        self.asked = True
        if self.lost and not was_lost:
            self.lost_at = trio.current_time()
        if self.shown() != before:
            self.changed.set()
            self.changed = trio.Event()
