"""Turns an instance's description into a machine. Pure.

An instance that is shutting down is TERMINATED at once: it cannot come back, no call has an effect on it any more, and its
successor does not need to wait for it.
"""

import dataclasses
import datetime
import re
from typing import TYPE_CHECKING, assert_never

from bentpipe.config.ec2_machine import SatelliteEc2Section
from bentpipe.daemon.model import Address, Fault, Machine, MachineId, MachineState
from bentpipe.daemon.providers.ec2.errors import FailureKind

if TYPE_CHECKING:
    from types_boto3_ec2.type_defs import InstanceTypeDef

FLEET_TAG = "bentpipe:fleet"
SATELLITE_TAG = "bentpipe:satellite"
RESERVE_TAG = "bentpipe:reserve"
"""Instead of a satellite's, on a machine that no satellite has yet."""

HIBERNATED = "Client.UserInitiatedHibernate"

FAULTS = {
    "Server.InsufficientInstanceCapacity": Fault.CAPACITY,
    "Server.SpotInstanceShutdown": Fault.CAPACITY,
    "Server.SpotInstanceTermination": Fault.CAPACITY,
    # Nearly always this is a volume with a key that we may not use: kms:CreateGrant is missing, for us or the instance.
    "Client.InternalError": Fault.PERMISSION,
    "Client.InvalidSnapshot.NotFound": Fault.OTHER,
    "Client.VolumeLimitExceeded": Fault.CAPACITY,
    "Server.InternalError": Fault.OTHER,
}
"""By StateReason.Code (botocore's model of EC2 lists them). If it is neither here nor below, somebody has stopped it."""
FULL = re.compile(r"^(Client|Server)\.(Insufficient.*Capacity|.*LimitExceeded|Spot.*)")
BROKEN = re.compile(r"^(Client|Server)\.(Invalid|Internal).*")
FAULT_WORDS = {
    Fault.CAPACITY: FailureKind.CAPACITY.value,
    Fault.PERMISSION: "the cloud may not use its disk or the disk's key",
    Fault.OTHER: "the cloud could not bring it up",
}
"""The message for clients, beside the code. EC2's own message may name things that only the operator may know."""

STOPPED_AT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
"""In StateTransitionReason: "User initiated (2026-01-31 12:00:00 GMT)". It is often empty. It is for people, and may
change."""


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """The parts of an instance's description that matter here."""

    instance_id: str
    raw_state: str
    """EC2's name of the state."""
    state: MachineState
    instance_type: str
    launched_at: float
    """time.time() seconds of its newest start."""
    hibernation: bool
    """Whether it was launched so that it can hibernate."""
    tags: dict[str, str]
    host: str
    """The address of the configured kind; "" if it has none now."""
    reason_code: str
    reason: str
    asleep_since: float | None
    zone: str = ""
    subnet: str = ""
    """"" if it is terminated."""
    spot_request: str = ""
    """The id of the request of a Spot Instance; "" if it is on demand."""
    volumes: tuple[str, ...] = ()
    """The ids of its disks."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """The tags that assign an instance to a satellite. If its id is `given`, it may lack them, but they must not differ."""

    fleet: str
    satellite: str
    given: bool
    tag: str = SATELLITE_TAG
    """Which tag has `satellite` as its value. In the reserve it is another tag, and the value is the machine's own."""

    @property
    def tags(self) -> dict[str, str]:
        """Both tags."""
        return {FLEET_TAG: self.fleet, self.tag: self.satellite}

    @property
    def words(self) -> str:
        """Both tags, for people."""
        return " ".join(f"{key}={value}" for key, value in self.tags.items())

    def objection(self, seen: "Description") -> str:
        """Why the instance does not belong to the satellite, for the operator; "" if it does."""
        wanted = self.tags
        found = {key: value for key, value in seen.tags.items() if key in wanted}
        if found == wanted or (self.given and found.items() <= wanted.items()):
            return ""
        has = " ".join(f"{key}={value}" for key, value in sorted(found.items())) or "neither of our tags"
        mend = "give the satellite another instance_id" if self.given else "send SIGHUP, and it is launched anew"
        return f"{seen.instance_id} has {has} and not {self.words}, so it is not used: mend its tags, or {mend}"


def read_description(instance: "InstanceTypeDef", section: SatelliteEc2Section) -> Description:
    """Read a description."""
    raw_state = instance["State"]["Name"]
    state_reason = instance.get("StateReason", {})
    code, transition = state_reason.get("Code", ""), instance.get("StateTransitionReason", "")
    state = state_of(raw_state, code)
    asleep = state in (MachineState.STOPPED, MachineState.HIBERNATED)
    return Description(
        instance_id=instance["InstanceId"],
        raw_state=raw_state,
        state=state,
        instance_type=instance.get("InstanceType", ""),
        launched_at=instance["LaunchTime"].timestamp(),
        hibernation=instance.get("HibernationOptions", {}).get("Configured", False),
        tags={tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())},
        host=_host(instance, section),
        reason_code=code,
        reason=" ".join(filter(None, (state_reason.get("Message", code), transition))),
        asleep_since=stopped_at(transition) if asleep else None,
        zone=instance.get("Placement", {}).get("AvailabilityZone", ""),
        subnet=instance.get("SubnetId", ""),
        spot_request=instance.get("SpotInstanceRequestId", ""),
        volumes=tuple(
            each["Ebs"]["VolumeId"]
            for each in instance.get("BlockDeviceMappings", ())
            if "VolumeId" in each.get("Ebs", {})
        ),
    )


def state_of(raw_state: str, reason_code: str) -> MachineState:
    """EC2's name of a state, and its reason, as our values."""
    match raw_state:
        case "pending":
            return MachineState.PENDING
        case "running":
            return MachineState.RUNNING
        case "stopping":
            return MachineState.STOPPING
        case "stopped":
            return MachineState.HIBERNATED if reason_code == HIBERNATED else MachineState.STOPPED
        case _:  # shutting-down, terminated
            return MachineState.TERMINATED


def foreign_machine_of(machine_id: MachineId, seen: Description) -> Machine:
    """The machine, if its instance is marked as another satellite's.

    Clients read the reason, so it names no other satellite.
    """
    words = f"{seen.instance_id} is not marked as this satellite's"
    return Machine(machine_id, MachineState.TERMINATED, reason=words, fault=Fault.FOREIGN, hint=words)


def machine_of(
    machine_id: MachineId, seen: Description, section: SatelliteEc2Section, *, type_hibernates: bool
) -> Machine:
    """The machine as the fleet sees it."""
    can_hibernate = seen.hibernation and type_hibernates
    match seen.state:
        case MachineState.RUNNING if not seen.host:
            # The address comes a moment after the state. If it never comes, this reason explains the failed wake.
            words = f"it runs, but has no {section.address} address"
            return Machine(machine_id, MachineState.PENDING, reason=words, hint=words, can_hibernate=can_hibernate)
        case MachineState.RUNNING:
            address = Address(seen.host, section.port)
            return Machine(machine_id, MachineState.RUNNING, address, can_hibernate=can_hibernate)
        case MachineState.PENDING | MachineState.STOPPING:
            return Machine(machine_id, seen.state, can_hibernate=can_hibernate)
        case MachineState.STOPPED | MachineState.HIBERNATED | MachineState.TERMINATED:
            return Machine(
                machine_id,
                seen.state,
                reason=seen.reason or seen.raw_state,
                fault=fault_of(seen.reason_code),
                can_hibernate=can_hibernate,
                asleep_since=seen.asleep_since,
                hint=_hint(seen),
            )
        case _:
            assert_never(seen.state)


def fault_of(reason_code: str) -> Fault | None:
    """Why it did not come up, by StateReason.Code; None if it did, and somebody has stopped it."""
    if reason_code in FAULTS:
        return FAULTS[reason_code]
    if FULL.match(reason_code):
        return Fault.CAPACITY
    return Fault.OTHER if BROKEN.match(reason_code) else None


def _hint(seen: Description) -> str:
    fault = fault_of(seen.reason_code)
    words = FAULT_WORDS[fault] if fault is not None else seen.raw_state
    return f"{words} ({seen.reason_code})" if seen.reason_code else words


def stopped_at(transition_reason: str) -> float | None:
    """time.time() seconds at which it was told to stop, if EC2 says so."""
    found = STOPPED_AT.search(transition_reason)
    if found is None:
        return None
    at = datetime.datetime.strptime(found.group(1), "%Y-%m-%d %H:%M:%S")
    return at.replace(tzinfo=datetime.UTC).timestamp()


def _host(instance: "InstanceTypeDef", section: SatelliteEc2Section) -> str:
    match section.address:
        case "private":
            return instance.get("PrivateIpAddress", "")
        case "public":
            return instance.get("PublicIpAddress", "")
        case "ipv6":
            return instance.get("Ipv6Address", "")
