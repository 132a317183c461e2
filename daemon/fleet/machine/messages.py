"""The inputs of the satellite's state machine, and its actions: frozen values without behaviour."""

import dataclasses
import enum
import math
from typing import NewType

from bentpipe.daemon.errors import BentpipeError, Draining, ProviderError
from bentpipe.daemon.fleet.machine.words import DRAINING
from bentpipe.daemon.model import Address, Machine, Resume, SatelliteState, SleepMode

WaiterId = NewType("WaiterId", int)


class SleepReason(enum.Enum):
    """Why the satellite is put to sleep."""

    IDLE = "idle"
    EVICTED = "idle, and another satellite needs its place"
    ASKED = "idle, and somebody asked for it"
    RENEWED = "woken only to be stopped plainly"
    UNREADY = "it runs but never became ready"
    UNREACHABLE = "it runs after a resume but cannot be reached: it is stopped and started once"


class SleepProblem(enum.Enum):
    """A finding about a machine that changes how it is put to sleep. Each is counted and logged."""

    CANNOT_HIBERNATE = "cannot hibernate: it is stopped instead"
    HIBERNATE_REFUSED = "hibernation was refused: it is stopped instead"
    FELL_BACK = "it stopped though it was to hibernate"
    COLD_RESUME = "it hibernated but came back without its memory"
    UNREACHABLE_RESUME = "it resumed but could not be reached: it is stopped and started once"
    FORCED = "it was stuck in stopping and was cut off"


# -- inputs ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Arrived:
    """A client wants the satellite. `crowded`: it may not be held, since too many are; `words` name the limit.

    `since` is when it began to wait, if that was earlier: it is held from then on. `tell_by` is the last moment at which
    a reason for failure is still of use to it.
    """

    waiter: WaiterId
    crowded: bool = False
    since: float | None = None
    tell_by: float = math.inf
    words: str = "too many clients wait for satellites already"


@dataclasses.dataclass(frozen=True, slots=True)
class Departed:
    """A waiter left before it was granted."""

    waiter: WaiterId


@dataclasses.dataclass(frozen=True, slots=True)
class Metered:
    """From now on the traffic of a lease can be read, and the lease can be ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Released:
    """A lease ended."""

    metered: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """A metered lease has moved more than health checks do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Adopted:
    """A client uses the satellite already: it was spliced before this machine began. It holds a lease in any state."""


@dataclasses.dataclass(frozen=True, slots=True)
class StillUsed:
    """A connection that was to be ended as quiet has moved more than that, and goes on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """The provider's newest look at the machine."""

    machine: Machine


@dataclasses.dataclass(frozen=True, slots=True)
class StartDone:
    """The start or launch call came back."""

    error: ProviderError | None


@dataclasses.dataclass(frozen=True, slots=True)
class StopDone:
    """The stop call came back."""

    error: ProviderError | None


@dataclasses.dataclass(frozen=True, slots=True)
class StopWithdrawn:
    """The stop call was not made, since a client came at the last moment."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """The machine's port listens."""


@dataclasses.dataclass(frozen=True, slots=True)
class ResumeDetected:
    """Whether the machine that became ready has kept its memory."""

    resume: Resume


@dataclasses.dataclass(frozen=True, slots=True)
class Unreachable:
    """For a while no client's connection could be dialled though the satellite is operational."""


@dataclasses.dataclass(frozen=True, slots=True)
class Suspected:
    """Something says that the machine may not be what was last seen: a failed attempt to dial, a broken splice."""


@dataclasses.dataclass(frozen=True, slots=True)
class DescribeDone:
    """The look that was asked for is over. If it saw the machine, a Seen came before; otherwise `error` says why not."""

    error: ProviderError | None


@dataclasses.dataclass(frozen=True, slots=True)
class Unseen:
    """The provider could not say how the machine is, in one of its own rounds."""

    error: ProviderError


@dataclasses.dataclass(frozen=True, slots=True)
class ProbeFailed:
    """The port does not answer yet; `words` say why. The input comes again when they change.

    `silent`: nothing at all has answered, not even a refusal.
    """

    words: str
    silent: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BuildsRead:
    """The satellite was asked how many builds run on it. None: it could not tell, or could not be asked."""

    running: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class KeepAwake:
    """The hours in which the satellite is kept awake begin or end."""

    wanted: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Renew:
    """The machine has been hibernated for nearly as long as its cloud allows."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlaceGranted:
    """The awake budget has a place for the satellite now."""


@dataclasses.dataclass(frozen=True, slots=True)
class Evict:
    """The awake budget needs the satellite's place."""


@dataclasses.dataclass(frozen=True, slots=True)
class SleepAsked:
    """A caller that may manage the satellite wants it to sleep, unless a client uses it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Distrusted:
    """The satellite's own word that builds run on it does not count any more, until it has slept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reset:
    """The operator has acted, or the configuration was read again: forget failures and sleep problems."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drain:
    """The satellite accepts no more clients. `error` is what they get; None: it accepts them again."""

    error: BentpipeError | None = dataclasses.field(default_factory=lambda: Draining(DRAINING))


ClientsInput = Arrived | Adopted | Departed | Metered | Released | Traffic | StillUsed | Drain
MachineInput = (
    StartDone
    | StopDone
    | StopWithdrawn
    | Ready
    | ProbeFailed
    | ResumeDetected
    | Unreachable
    | Suspected
    | Seen
    | Unseen
    | DescribeDone
    | BuildsRead
)
OrderInput = KeepAwake | Renew | PlaceGranted | Evict | SleepAsked | Reset
Input = ClientsInput | MachineInput | OrderInput | Distrusted | Tick

# -- actions -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Call the provider's start."""


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """Call the provider's launch. Each machine that was lost makes `generation` one larger."""

    generation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """Call the provider's stop. `restart`: the clients that wait want it, since the machine cannot be reached."""

    mode: SleepMode
    force: bool = False
    restart: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class EndQuiet:
    """End the metered leases, in good order or (`cut`) at once. A Released follows for each."""

    cut: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """Begin to test whether the port listens, and end the probe under way."""

    address: Address


@dataclasses.dataclass(frozen=True, slots=True)
class EndProbe:
    """End the probe under way."""


@dataclasses.dataclass(frozen=True, slots=True)
class Describe:
    """Ask the provider how the machine is now. A DescribeDone follows."""


@dataclasses.dataclass(frozen=True, slots=True)
class CountBuilds:
    """Ask the satellite how many builds run on it. A BuildsRead follows, whatever happens."""


@dataclasses.dataclass(frozen=True, slots=True)
class GrantLease:
    """The waiter has a lease."""

    waiter: WaiterId
    address: Address


@dataclasses.dataclass(frozen=True, slots=True)
class Fail:
    """The waiter gets the error."""

    waiter: WaiterId
    error: BentpipeError


@dataclasses.dataclass(frozen=True, slots=True)
class Moved:
    """The state has changed, which the log and the ledger are told."""

    before: SatelliteState
    after: SatelliteState
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class ProblemFound:
    """An operator should know this about the machine."""

    problem: SleepProblem
    words: str


Action = (
    Start
    | Launch
    | Stop
    | EndQuiet
    | Probe
    | EndProbe
    | Describe
    | CountBuilds
    | GrantLease
    | Fail
    | Moved
    | ProblemFound
)
