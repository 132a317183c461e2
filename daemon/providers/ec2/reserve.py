"""The reserve's machines on EC2: carries out `daemon/providers/reserve.py` with EC2's API.

They have the tag `bentpipe:reserve` instead of a satellite's. A machine is assigned in this order: its user data, its start,
the satellite's tags. So a start that EC2 refuses leaves nothing behind, and an attempt that was interrupted anywhere can be
made again. The reserve's tag goes later, when the satellite has been operational.

EC2 takes new user data of an instance only while it is stopped, and one that is hibernated is (EC2's user guide, "How
Amazon EC2 instance hibernation works"). The resumed machine reads them from the metadata service, which is not a part of
its memory.

It must never decide which machine is whose: the store does.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Collection

from bentpipe.config.ec2_machine import SatelliteEc2Section
from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.errors import (
    LaunchTokenSpent,
    MachineNotFound,
    ProviderPermission,
    ProviderRetryable,
    SleepTooEarly,
    SpareUnusable,
)
from bentpipe.daemon.ids import parts_of_reserve_tag, reserve_tag
from bentpipe.daemon.model import Address, MachineId, MachineState, SleepMode
from bentpipe.daemon.providers.attempts import UnsharedRecord, recorded_by
from bentpipe.daemon.providers.ec2.batch import Batcher
from bentpipe.daemon.providers.ec2.calls import Ec2Calls
from bentpipe.daemon.providers.ec2.descriptions import (
    FLEET_TAG,
    RESERVE_TAG,
    SATELLITE_TAG,
    Description,
    Mark,
    fault_of,
    read_description,
)
from bentpipe.daemon.providers.ec2.entry import Ec2Machine, Entry, Hosts
from bentpipe.daemon.providers.ec2.errors import NO_SPOT_REQUEST, Ec2Failure, FailureKind
from bentpipe.daemon.providers.ec2.launching import OF_ONE_ALTERNATIVE, Launcher
from bentpipe.daemon.providers.ec2.poller import Poller
from bentpipe.daemon.providers.reserve import SpareMachine

ASLEEP = (MachineState.STOPPED, MachineState.HIBERNATED)
UP = (MachineState.PENDING, MachineState.RUNNING)
NOT_STARTED = frozenset({*OF_ONE_ALTERNATIVE, FailureKind.NOT_FOUND, FailureKind.WRONG_STATE, FailureKind.UNKNOWN})
"""Refusals of a step that another attempt would get again: an ordinary launch serves the satellite sooner."""
GIVEN_UP = "the machine from the reserve did not come up, and another one is launched"

SpareData = Callable[[MachineTypeSection], Awaitable[bytes]]
"""Makes the user data of a type's machines that belong to no satellite: no name, no token. Raises ProviderError."""


@dataclasses.dataclass(slots=True)
class _Launch:
    """What an unanswered launch needs when it is repeated."""

    entry: Entry
    record: UnsharedRecord = dataclasses.field(default_factory=UnsharedRecord)


class Ec2Reserve:
    """`SpareProvider` for EC2."""

    def __init__(self, fleet: str, calls: Ec2Calls, poller: Poller, launcher: Launcher, starts: Batcher) -> None:
        self._fleet = fleet
        self._calls = calls
        self._poller = poller
        self._launcher = launcher
        self._starts = starts
        self._launches: dict[str, _Launch] = {}
        self.user_data: SpareData | None = None
        self.sections: dict[tuple[str, str], SatelliteEc2Section] = {}
        """By size and platform: which address and port a machine has."""

    async def look(self, known: Collection[str]) -> tuple[SpareMachine, ...]:
        """DescribeInstances, by the tag and by the ids."""
        try:
            found = await self._calls.find_tagged((FLEET_TAG, self._fleet), RESERVE_TAG)
            seen = {each["InstanceId"] for each in found}
            found += await self._calls.describe([each for each in known if each not in seen])
        except Ec2Failure as failure:
            raise failure.to_error() from failure
        looks = []
        for instance in found:
            tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
            size, platform, _ = parts_of_reserve_tag(tags.get(RESERVE_TAG, ""))
            section = self.sections.get((size, platform), SatelliteEc2Section())
            looks.append(_look_of(read_description(instance, section), section))
        return tuple(looks)

    async def launch(self, kind: MachineTypeSection, spare: str) -> None:
        """RunInstances, as for a satellite, with the reserve's tag and without an identity."""
        if kind.ec2 is None:
            raise MachineNotFound(f"{kind.size} is not a machine type on EC2")
        this = self._launches.get(spare)
        if this is None:
            user_data = self.user_data

            async def data(_token: str) -> bytes:
                return b"" if user_data is None else await user_data(kind)

            tag = reserve_tag(kind.size, kind.platform, spare)
            machine = Ec2Machine(tag, kind.ec2, data, tag=RESERVE_TAG)
            mark = Mark(self._fleet, tag, given=False, tag=RESERVE_TAG)
            this = self._launches[spare] = _Launch(Entry(MachineId(spare), machine, mark, None, Hosts(set)))
        with recorded_by(this.record):
            try:
                seen = await self._launcher.launch(this.entry, spare)
            except Ec2Failure as failure:
                raise failure.to_error() from failure
        self.forget(spare)
        if seen.state is MachineState.TERMINATED:
            raise LaunchTokenSpent(f"{seen.instance_id} of the reserve is terminated: {seen.reason}")

    def forget(self, spare: str) -> None:
        """See SpareProvider."""
        self._launches.pop(spare, None)

    async def lay_down(self, machine: SpareMachine, mode: SleepMode) -> None:
        """StopInstances. A refusal because of the state, by an instance that runs, is EC2's "too early"."""
        hibernate = mode is SleepMode.HIBERNATE
        try:
            await self._calls.stop([machine.instance], hibernate=hibernate, force=False)
        except Ec2Failure as failure:
            if hibernate and failure.kind is FailureKind.WRONG_STATE:
                raise SleepTooEarly(str(failure), peer_hint=FailureKind.TOO_EARLY.value) from failure
            raise failure.to_error() from failure

    async def destroy(self, machine: SpareMachine) -> None:
        """TerminateInstances, and the Spot request's end before it, if the instance has our fleet's tag."""
        try:
            found = await self._calls.describe([machine.instance])
            for instance in found:
                seen = read_description(instance, SatelliteEc2Section())
                if seen.tags.get(FLEET_TAG) != self._fleet:
                    raise ProviderPermission(f"{machine.instance} is not terminated: it lacks the tag of our fleet")
                await self._destroy(seen)
        except Ec2Failure as failure:
            if failure.kind is not FailureKind.NOT_FOUND:
                raise failure.to_error() from failure

    async def _destroy(self, seen: Description) -> None:
        if seen.state is MachineState.TERMINATED:
            return
        if seen.spot_request:
            try:
                await self._calls.cancel_spot(seen.spot_request)
            except Ec2Failure as failure:
                if failure.code != NO_SPOT_REQUEST:
                    raise
        await self._calls.terminate(seen.instance_id)

    async def assign(self, instance: str, spare: str, machine_id: MachineId, token: str, *, again: bool) -> None:
        """See SpareProvider."""
        entry = self._poller.entry(machine_id)
        look = await self._poller.refresh(entry)
        if look is not None and look.state is not MachineState.TERMINATED:
            return
        try:
            seen = await self._described(instance, spare, entry)
            if entry.mark.objection(seen):
                await self._start(entry, seen, token, again=again)
                await self._calls.tag(_resources(seen), entry.mark.tags)
        except Ec2Failure as failure:
            if failure.kind in NOT_STARTED:
                raise SpareUnusable(f"{instance}: {failure}") from failure
            raise failure.to_error() from failure
        self._poller.assigned(entry, seen)

    async def release(self, machine: SpareMachine) -> None:
        """DeleteTags."""
        try:
            for instance in await self._calls.describe([machine.instance]):
                await self._calls.untag(_resources(read_description(instance, SatelliteEc2Section())), RESERVE_TAG)
        except Ec2Failure as failure:
            if failure.kind is not FailureKind.NOT_FOUND:
                raise failure.to_error() from failure

    async def _described(self, instance: str, spare: str, entry: Entry) -> Description:
        """The instance, if it may become the satellite's. Raises SpareUnusable, Ec2Failure."""
        found = [read_description(each, entry.machine.section) for each in await self._calls.describe([instance])]
        if not found or found[0].state is MachineState.TERMINATED:
            raise SpareUnusable(f"{instance} is gone")
        (seen,) = found
        tags = seen.tags
        _, _, tagged = parts_of_reserve_tag(tags.get(RESERVE_TAG, ""))
        if tags.get(FLEET_TAG) != self._fleet or tags.get(SATELLITE_TAG) not in (None, entry.machine.satellite):
            raise SpareUnusable(f"{instance} has another fleet's or satellite's tags")
        if SATELLITE_TAG not in tags and tagged != spare:
            raise SpareUnusable(f"{instance} does not have the tag {RESERVE_TAG} of {spare}")
        return seen

    async def _start(self, entry: Entry, seen: Description, token: str, *, again: bool) -> None:
        """Give it its identity and start it. Raises SpareUnusable, ProviderError, Ec2Failure."""
        if again and seen.state in UP:
            return  # an earlier attempt has done that
        if seen.state is MachineState.STOPPING:
            raise ProviderRetryable(f"{seen.instance_id} is still being stopped")
        if seen.state not in ASLEEP:
            raise SpareUnusable(f"{seen.instance_id} was started by others, so that it cannot get its identity")
        if entry.machine.own_data is not None and (data := await entry.machine.own_data(token)):
            await self._calls.set_user_data(seen.instance_id, data)
        await self._starts.add(seen.instance_id)

    async def start_unproven(
        self, entry: Entry, instance_id: str, terminate: Callable[[MachineId], Awaitable[None]]
    ) -> None:
        """Start an instance that has never come up for its satellite, or give it up: then another one is launched.

        Raises MachineNotFound if it is given up, or ProviderError.
        """
        failure: Ec2Failure | None = None
        if entry.look is None or entry.look.fault is None:
            try:
                await self._starts.add(instance_id)
            except Ec2Failure as exc:
                if exc.kind not in OF_ONE_ALTERNATIVE:
                    raise exc.to_error() from exc
                failure = exc
            else:
                return
        await terminate(entry.machine_id)
        why = str(failure) if failure is not None else "" if entry.look is None else entry.look.reason
        raise MachineNotFound(f"{instance_id}: {GIVEN_UP}: {why}", peer_hint=GIVEN_UP) from failure


def _resources(seen: Description) -> list[str]:
    """What has the tags: the instance, its disks, and its Spot request."""
    return [seen.instance_id, *seen.volumes, *([seen.spot_request] if seen.spot_request else [])]


def _look_of(seen: Description, section: SatelliteEc2Section) -> SpareMachine:
    _, _, spare = parts_of_reserve_tag(seen.tags.get(RESERVE_TAG, ""))
    runs = seen.state is MachineState.RUNNING and seen.host
    return SpareMachine(
        spare=spare,
        instance=seen.instance_id,
        state=seen.state,
        address=Address(seen.host, section.port) if runs else None,
        up_since=seen.launched_at,
        fault=fault_of(seen.reason_code) if seen.state in (*ASLEEP, MachineState.TERMINATED) else None,
        reason=seen.reason,
        satellite=seen.tags.get(SATELLITE_TAG, ""),
        can_hibernate=seen.hibernation,
    )
