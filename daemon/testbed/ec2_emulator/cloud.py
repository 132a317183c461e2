"""The emulated region of one account: instances, templates and types, and the calls that were made. Speaks no HTTP.

One lock guards everything except waiting. Transitions that are due are made at every look.
"""

import dataclasses
import threading
from collections.abc import Iterator, Sequence

from bentpipe.daemon.testbed.ec2_emulator.clock import Clock
from bentpipe.daemon.testbed.ec2_emulator.faults import Faults, RequestLimits
from bentpipe.daemon.testbed.ec2_emulator.instance import Instance, MemoryStep, Timings
from bentpipe.daemon.testbed.ec2_emulator.machines import Addresses, EmulatedMachines
from bentpipe.daemon.testbed.ec2_emulator.pools import EmptyPools, Lack
from bentpipe.daemon.testbed.ec2_emulator.wire import ApiError


@dataclasses.dataclass(frozen=True, slots=True)
class ApiCall:
    """One API call: `outcome` is "ok", an error's code, or "reset"; `changes` is (id, state before, state after)."""

    at: float
    action: str
    instance_ids: tuple[str, ...]
    outcome: str
    principal: str
    """The access key of its signature. It tells which of several daemons has called."""
    changes: tuple[tuple[str, str, str], ...] = ()
    client_token: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A launch template: the properties of an instance that is launched from it."""

    template_id: str
    name: str
    image_id: str = "ami-0emulated"
    instance_type: str = "m7g.large"
    encrypted: bool = False
    root_device: str = "/dev/xvda"


@dataclasses.dataclass(frozen=True, slots=True)
class Launched:
    """The use of a client token."""

    params: tuple[tuple[str, str], ...]
    instance_ids: tuple[str, ...]


DEFAULT_TYPES = {"m7g.large": True, "m7i.large": True, "c7g.xlarge": True, "m7g.metal": False, "m5n.large": False}
"""Instance types and whether they can hibernate."""


class Cloud:
    """One region of one account: its instances, templates, faults and limits."""

    def __init__(
        self, clock: Clock, timings: Timings, *, limited: bool = False, machines: EmulatedMachines | None = None
    ) -> None:
        self.clock = clock
        self.timings = timings
        self.faults = Faults()
        self.limits = RequestLimits(clock, enabled=limited)
        self.machines = machines
        self.addresses = Addresses(loopback=machines is not None)
        self.instances: dict[str, Instance] = {}
        self.templates: dict[str, Template] = {}
        self.types = dict(DEFAULT_TYPES)
        self.launched: dict[str, Launched] = {}
        self.subnets = {"subnet-0emulated": "eu-central-1a"}
        """The zone of each."""
        self.empty: list[EmptyPools] = []
        self.spot_requests: dict[str, bool] = {}
        """Whether the persistent Spot request is open: then EC2 replaces an instance of it that is terminated."""
        self.calls: list[ApiCall] = []
        self.ahead_s = 0.0
        """By how much its clock is ahead of this host's, as callers see it."""
        self.lock = threading.RLock()

    def settle(self) -> None:
        """Make the transitions that are due, in their order. Under the lock."""
        with self.lock:
            now = self.clock.now()
            for instance in sorted(self.instances.values(), key=lambda each: each.due or 0.0):
                self.follow(instance, instance.settle(now))

    def follow(self, instance: Instance, memory: MemoryStep | None) -> None:
        """Do to the instance's process, if it has one, what has happened to its memory."""
        if self.machines is not None and memory is not None:
            self.machines.follow(instance, memory)

    def check_capacity(self, instance_type: str, zone: str, *, spot: bool) -> bool:
        """Return whether an instance of the pool can run. Raises ApiError if EC2 says at once that it cannot."""
        found = next((each for each in self.empty if each.has(instance_type, zone, spot=spot)), None)
        if found is not None and found.lack is Lack.REFUSED:
            words = f"We currently do not have sufficient {instance_type} capacity in the Availability Zone {zone}."
            raise ApiError(found.code, words, 500)
        return found is None

    def next_due(self) -> float | None:
        with self.lock:
            return min((each.due for each in self.instances.values() if each.due is not None), default=None)

    def visible(self) -> Iterator[Instance]:
        """The instances that the API already knows."""
        now = self.clock.now()
        for instance in self.instances.values():
            if not instance.client_token or now - instance.created_at >= self.timings.unseen_s:
                yield instance

    def find(self, instance_ids: Sequence[str]) -> list[Instance]:
        """Return all of them. Raises ApiError, EC2's own, if one is unknown."""
        for each in instance_ids:
            if not each.startswith("i-"):
                raise ApiError("InvalidInstanceID.Malformed", f'Invalid id: "{each}"')
        known = {each.instance_id: each for each in self.visible()}
        missing = [each for each in instance_ids if each not in known]
        if missing:
            words = f"ID '{missing[0]}' does" if len(missing) == 1 else f"IDs '{', '.join(missing)}' do"
            raise ApiError("InvalidInstanceID.NotFound", f"The instance {words} not exist")
        return [known[each] for each in instance_ids]
