"""Controls the emulator: scripts faults, moves the clock, changes instances behind the daemon's back, reads the call log.

The same methods in-process and as POST /control/NAME with their keyword arguments as a JSON object.
"""

import dataclasses
import secrets
from collections.abc import Mapping

from bentpipe.daemon.testbed.ec2_emulator.cloud import ApiCall, Cloud, Template
from bentpipe.daemon.testbed.ec2_emulator.faults import InjectedFault
from bentpipe.daemon.testbed.ec2_emulator.instance import (
    DAY_S,
    INSIDE_SHUTDOWN,
    USER_HIBERNATE,
    USER_SHUTDOWN,
    Instance,
    InstanceState,
    OnHibernate,
    OnStart,
    OnStop,
)
from bentpipe.daemon.testbed.ec2_emulator.pools import EmptyPools, Lack
from bentpipe.daemon.testbed.ec2_emulator.wire import ApiError


class Control:
    """The controls of a cloud: they make instances, script faults, and list the calls that were made."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud

    # What there is

    def add_instance(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        instance_type: str = "m7g.large",
        hibernation: bool = True,
        running: bool = False,
        age_s: float = DAY_S,
    ) -> str:
        """Create an instance that is `age_s` old: stopped by its user, or running. Returns its id."""
        with self.cloud.lock:
            now = self.cloud.clock.now()
            instance = Instance(
                instance_id=f"i-{secrets.token_hex(8)}0",
                instance_type=instance_type,
                private_ip=self.cloud.addresses.give(),
                hibernation=hibernation,
                launched_at=now - age_s,
                created_at=now - age_s,
                tags=dict(tags or {}),
                reason=USER_SHUTDOWN,
                slept_at=now,
            )
            self.cloud.instances[instance.instance_id] = instance
            if running:
                instance.launch(now - age_s, self.cloud.timings)
                self.cloud.follow(instance, instance.settle(now))
            return instance.instance_id

    def add_template(
        self, *, name: str, instance_type: str = "m7g.large", encrypted: bool = False, root_device: str = "/dev/xvda"
    ) -> str:
        """Create a launch template. Returns its id."""
        with self.cloud.lock:
            template = Template(
                f"lt-{secrets.token_hex(8)}0", name, "ami-0emulated", instance_type, encrypted, root_device
            )
            self.cloud.templates[template.template_id] = template
            return template.template_id

    def add_subnet(self, *, zone: str) -> str:
        """Create a subnet. Returns its id."""
        with self.cloud.lock:
            subnet_id = f"subnet-{secrets.token_hex(8)}0"
            self.cloud.subnets[subnet_id] = zone
            return subnet_id

    def exhaust(
        self,
        *,
        instance_type: str | None = None,
        zone: str | None = None,
        spot: bool | None = None,
        later: bool = False,
        code: str = "InsufficientInstanceCapacity",
    ) -> None:
        """Let pools have no capacity; None means all. `later`: EC2 accepts the call, and the instance ends by itself."""
        with self.cloud.lock:
            lack = Lack.LATER if later else Lack.REFUSED
            self.cloud.empty.append(EmptyPools(lack, instance_type, zone, spot, code))

    def refill(self) -> None:
        """Let all pools have capacity again."""
        with self.cloud.lock:
            self.cloud.empty.clear()

    # Time

    def advance(self, *, seconds: float) -> None:
        """Let emulated time pass. Transitions that are due then have happened when this returns."""
        self.cloud.clock.advance(seconds)
        self.cloud.settle()

    def advance_to_next(self) -> bool:
        """Jump to the end of the next transition. False if none is under way."""
        due = self.cloud.next_due()
        if due is None:
            return False
        self.advance(seconds=max(0.0, due - self.cloud.clock.now()))
        return True

    def set_ahead(self, *, seconds: float) -> None:
        """Let the cloud's clock be ahead of its callers', so that it does not accept their signatures."""
        self.cloud.ahead_s = seconds

    def set_timing(self, *, name: str, seconds: float) -> None:
        """Change one of `Timings`, by its name."""
        with self.cloud.lock:
            self.cloud.timings = dataclasses.replace(self.cloud.timings, **{name: seconds})

    def age_hibernation(self, *, instance_id: str, days: float) -> None:
        """Make an instance's sleep longer by this time."""
        with self.cloud.lock:
            instance = self.instance(instance_id)
            instance.slept_at = (instance.slept_at or self.cloud.clock.now()) - days * DAY_S

    # Faults

    def script(
        self,
        *,
        instance_id: str,
        on_start: str | OnStart | None = None,
        on_stop: str | OnStop | None = None,
        on_hibernate: str | OnHibernate | None = None,
        new_address: bool = False,
        address: str | None = None,
    ) -> None:
        """Set how an instance behaves from now on. A value of None changes nothing.

        `new_address` and `address` are for its next start: an address that no instance has had, or a given one. In a real
        subnet a terminated instance may have had that address a moment ago.
        """
        with self.cloud.lock:
            instance = self.instance(instance_id)
            if on_start is not None:
                instance.script.on_start = OnStart(on_start)
            if on_stop is not None:
                instance.script.on_stop = OnStop(on_stop)
            if on_hibernate is not None:
                instance.script.on_hibernate = OnHibernate(on_hibernate)
            if new_address:
                instance.next_private_ip = self.cloud.addresses.give()
            if address is not None:
                instance.next_private_ip = address

    def tag(self, *, instance_id: str, tags: Mapping[str, str | None]) -> None:
        """Change an instance's tags, as the console does; None removes a tag."""
        with self.cloud.lock:
            found = self.instance(instance_id).tags
            for key, value in tags.items():
                if value is None:
                    found.pop(key, None)
                else:
                    found[key] = value

    def fail(
        self,
        *,
        action: str,
        code: str,
        message: str = "",
        status: int = 400,
        times: int | None = 1,
        instance_id: str | None = None,
    ) -> None:
        """Answer the next `times` calls with an error. `action` "*" is any, `times` None for ever."""
        error = ApiError(code, message or f"{code}: by the script", status)
        self.cloud.faults.add(InjectedFault(action, times, instance_id, error=error))

    def deny(self, *, action: str) -> None:
        """Forbid an action, until the faults are cleared."""
        words = "You are not authorized to perform this operation."
        self.fail(action=action, code="UnauthorizedOperation", message=words, status=403, times=None)

    def reset(self, *, action: str, times: int | None = 1, after: bool = False) -> None:
        """Break the connection: before the action is done, or `after` it."""
        self.cloud.faults.add(InjectedFault(action, times, reset_before=not after, reset_after=after))

    def foreign(self, *, action: str, body: str, times: int | None = 1) -> None:
        """Answer with something that does not come from EC2, as a captive proxy does."""
        self.cloud.faults.add(InjectedFault(action, times, foreign_body=body))

    def slow(self, *, action: str, delay_s: float, times: int | None = 1) -> None:
        """Wait for this many real seconds before the action is done."""
        self.cloud.faults.add(InjectedFault(action, times, delay_s=delay_s))

    def hold(self, *, action: str, after: bool = False, skip: int = 0) -> None:
        """Let calls of an action wait until `release`: before the action is done, or `after` it, with the answer.

        The first `skip` calls do not wait.
        """
        self.cloud.faults.hold(action, after=after, skip=skip)

    def held(self, *, action: str) -> int:
        """The number of calls of an action that wait now."""
        return self.cloud.faults.held(action)

    def release(self, *, action: str) -> None:
        self.cloud.faults.release(action)

    def clear_faults(self) -> None:
        self.cloud.faults.clear()

    def limit(self, *, action: str, capacity: float, refill_per_s: float) -> None:
        """Set an action's token bucket, and enforce all of them from now on."""
        with self.cloud.lock:
            self.cloud.limits.set(action, capacity, refill_per_s)

    # Others, behind our back: no API call is logged

    def others_start(self, *, instance_id: str) -> None:
        with self.cloud.lock:
            self.cloud.settle()
            instance = self.instance(instance_id)
            if instance.state is InstanceState.STOPPED:
                instance.begin_start(self.cloud.clock.now(), self.cloud.timings)

    def others_stop(
        self, *, instance_id: str, hibernate: bool = False, force: bool = False, inside: bool = False
    ) -> None:
        """Stop it by the console, or from `inside` (shutdown -h)."""
        with self.cloud.lock:
            self.cloud.settle()
            instance = self.instance(instance_id)
            reason = INSIDE_SHUTDOWN if inside else USER_HIBERNATE if hibernate else USER_SHUTDOWN
            stoppable = (InstanceState.PENDING, InstanceState.RUNNING, *((InstanceState.STOPPING,) if force else ()))
            if instance.state in stoppable:
                memory = instance.begin_stop(self.cloud.clock.now(), self.cloud.timings, reason, force=force)
                self.cloud.follow(instance, memory)

    def others_terminate(self, *, instance_id: str) -> None:
        with self.cloud.lock:
            self.cloud.settle()
            instance = self.instance(instance_id)
            if instance.state not in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
                memory = instance.begin_terminate(self.cloud.clock.now(), self.cloud.timings)
                self.cloud.follow(instance, memory)

    def forget(self, *, instance_id: str) -> None:
        """Let the API forget an instance, as EC2 does an hour after its termination."""
        with self.cloud.lock:
            del self.cloud.instances[instance_id]

    # What has happened

    def calls(self, *, action: str | None = None) -> list[ApiCall]:
        """The API calls so far, of one action or all, in their order."""
        with self.cloud.lock:
            return [each for each in self.cloud.calls if action in (None, each.action)]

    def clear_calls(self) -> None:
        with self.cloud.lock:
            self.cloud.calls.clear()

    def starts(self, *, instance_id: str) -> int:
        """How often anybody has started the instance from stopped: at most once for each sleep."""
        with self.cloud.lock:
            return self.instance(instance_id).effective_starts

    def state(self, *, instance_id: str) -> str:
        with self.cloud.lock:
            self.cloud.settle()
            return self.instance(instance_id).state.label

    def boot_id(self, *, instance_id: str) -> str:
        """Changes whenever the instance boots, and not when it resumes."""
        with self.cloud.lock:
            self.cloud.settle()
            return self.instance(instance_id).boot_id

    def describe(self) -> list[dict[str, object]]:
        """Every instance, for people and for tests of subprocesses."""
        with self.cloud.lock:
            self.cloud.settle()
            return [
                {
                    "instance_id": each.instance_id,
                    "instance_type": each.instance_type,
                    "zone": each.zone,
                    "spot": bool(each.spot_request),
                    "state": each.state.label,
                    "reason": each.reason.code if each.reason else "",
                    "tags": each.tags,
                    "private_ip": each.private_ip,
                    "boot_id": each.boot_id,
                    "starts": each.effective_starts,
                    "pid": self.cloud.machines.pid(each.instance_id) if self.cloud.machines else None,
                }
                for each in self.cloud.instances.values()
            ]

    def instance(self, instance_id: str) -> Instance:
        """The live object, for tests in-process. Raises KeyError."""
        return self.cloud.instances[instance_id]

    def methods(self) -> frozenset[str]:
        """The names of the methods that HTTP may call."""
        hidden = ("methods", "instance", "cloud")
        return frozenset(name for name in dir(self) if not name.startswith("_") and name not in hidden)
