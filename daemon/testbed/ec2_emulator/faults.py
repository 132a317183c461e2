"""Scripted faults (errors, broken connections and slow answers, for each action), and the account's rate limits."""

import dataclasses
import threading
from collections.abc import Collection, Mapping

from bentpipe.daemon.testbed.ec2_emulator.clock import Clock
from bentpipe.daemon.testbed.ec2_emulator.wire import ApiError


@dataclasses.dataclass(slots=True)
class InjectedFault:
    """One scripted fault for calls of `action` ("*": any) that name `instance_id` (None: any)."""

    action: str
    times: int | None = 1
    """None: until the faults are cleared."""
    instance_id: str | None = None
    error: ApiError | None = None
    reset_before: bool = False
    """The connection breaks before the action is done."""
    reset_after: bool = False
    """The action is done, and the connection breaks before the answer."""
    foreign_body: str | None = None
    """The answer instead, with status 200, as from something that is not EC2."""
    delay_s: float = 0.0
    """Real seconds before the action is done."""

    def fits(self, action: str, instance_ids: Collection[str]) -> bool:
        right_instance = self.instance_id is None or self.instance_id in instance_ids
        return self.times != 0 and self.action in ("*", action) and right_instance


@dataclasses.dataclass(slots=True)
class _Gate:
    opened: threading.Event = dataclasses.field(default_factory=threading.Event)
    waiting: int = 0
    skip: int = 0
    """So many calls do not wait."""


class Faults:
    """The script, and calls that are held until they are released.

    It has a lock of its own, and held calls wait outside it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._script: list[InjectedFault] = []
        self._held: dict[tuple[str, bool], _Gate] = {}

    def add(self, fault: InjectedFault) -> None:
        with self._lock:
            self._script.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._script.clear()
            for gate in self._held.values():
                gate.opened.set()
            self._held.clear()

    def hold(self, action: str, *, after: bool, skip: int = 0) -> None:
        with self._lock:
            self._held.setdefault((action, after), _Gate(skip=skip))

    def release(self, action: str) -> None:
        with self._lock:
            for after in (False, True):
                if gate := self._held.pop((action, after), None):
                    gate.opened.set()

    def held(self, action: str) -> int:
        """How many calls wait to be released."""
        return sum(gate.waiting for (held, _), gate in self._held.items() if held == action)

    def wait_released(self, action: str, *, after: bool) -> None:
        with self._lock:
            gate = self._held.get((action, after))
            if gate is not None and gate.skip:
                gate.skip -= 1
                gate = None
            if gate is not None:
                gate.waiting += 1
        if gate is not None:
            gate.opened.wait()

    def take(self, action: str, instance_ids: Collection[str]) -> InjectedFault | None:
        with self._lock:
            for fault in self._script:
                if fault.fits(action, instance_ids):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


@dataclasses.dataclass(slots=True)
class Bucket:
    """A token bucket, as EC2 uses for throttling."""

    capacity: float
    refill_per_s: float
    tokens: float = 0.0
    at: float | None = None

    def take(self, count: int, now: float) -> bool:
        """Take `count` tokens. If there are fewer, take none and return False."""
        if self.at is None:
            self.tokens = self.capacity
        else:
            self.tokens = min(self.capacity, self.tokens + (now - self.at) * self.refill_per_s)
        self.at = now
        if self.tokens < count:
            return False
        self.tokens -= count
        return True


REQUEST_LIMITS: Mapping[str, tuple[float, float]] = {
    "DescribeInstances": (100, 20),
    "DescribeInstanceTypes": (100, 20),
    "DescribeLaunchTemplateVersions": (100, 20),
    "DescribeImages": (100, 20),
    "RunInstances": (5, 2),
    "StartInstances": (5, 2),
    "StopInstances": (50, 5),
    "TerminateInstances": (100, 5),
    "CreateTags": (50, 5),
    "ModifyInstanceAttribute": (50, 5),
    "CancelSpotInstanceRequests": (50, 5),
}
"""Bucket and tokens a second, for each action: AWS's page "Request throttling for the Amazon EC2 API"."""

UNPAGINATED_LIMIT = (50.0, 10.0)
"""For Describe… without MaxResults, ids or filters, by the same page."""

RESOURCE_LIMITS: Mapping[str, tuple[float, float]] = {
    "RunInstances": (1000, 2),
    "StartInstances": (1000, 2),
    "StopInstances": (1000, 20),
    "TerminateInstances": (1000, 20),
}
"""The same for the instances that are named in the calls."""


class RequestLimits:
    """The account's token buckets. While it is off it limits nothing."""

    def __init__(self, clock: Clock, *, enabled: bool) -> None:
        self._clock = clock
        self.enabled = enabled
        self._requests = {action: Bucket(*limit) for action, limit in REQUEST_LIMITS.items()}
        self._resources = {action: Bucket(*limit) for action, limit in RESOURCE_LIMITS.items()}
        self._unpaginated = Bucket(*UNPAGINATED_LIMIT)

    def set(self, action: str, capacity: float, refill_per_s: float) -> None:
        self.enabled = True
        self._requests[action] = Bucket(capacity, refill_per_s)

    def check(self, action: str, resources: int, *, paginated: bool) -> None:
        """Take a call's tokens. Raises RequestLimitExceeded."""
        if not self.enabled:
            return
        now = self._clock.request_s()
        bucket = self._requests[action] if paginated else self._unpaginated
        if not bucket.take(1, now):
            raise ApiError("RequestLimitExceeded", "Request limit exceeded.", 503)
        extra = self._resources.get(action)
        if extra is not None and not extra.take(resources, now):
            raise ApiError("RequestLimitExceeded", "Request limit exceeded. (resource tokens)", 503)
