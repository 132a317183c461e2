"""The daemon's nouns: small immutable values that pass between its parts. No I/O, no behaviour."""

import dataclasses
import enum
from typing import NewType

MachineId = NewType("MachineId", str)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class SatelliteKey:
    """Names one satellite: `org` and `name` as they stand in the request's metadata."""

    org: str
    name: str

    def __str__(self) -> str:
        return f"{self.org}/{self.name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a satellite listens: an IP address or host name, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class SatelliteState(enum.Enum):
    """State of a satellite, by the names of the public Compute API."""

    CREATING = "creating"
    OPERATIONAL = "operational"
    SLEEP = "sleep"
    STARTING = "starting"
    STOPPING = "stopping"
    UPDATING = "updating"
    OFFLINE = "offline"
    FAILED = "failed"
    DESTROYING = "destroying"
    UNKNOWN = "unknown"


class SleepMode(enum.Enum):
    """How a machine is put to sleep: with its memory kept, or without."""

    HIBERNATE = "hibernate"
    STOP = "stop"


class MachineState(enum.Enum):
    """What a provider says of a machine: EC2's instance states, with hibernated told apart from stopped."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    HIBERNATED = "hibernated"
    TERMINATED = "terminated"


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """One look at a machine. `address` is None unless it is RUNNING; `reason` is the provider's own words."""

    machine_id: MachineId
    state: MachineState
    address: Address | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """A satellite's change of state: `at` is time.time() seconds, `cause` a short text for people."""

    key: SatelliteKey
    before: SatelliteState
    after: SatelliteState
    at: float
    cause: str
