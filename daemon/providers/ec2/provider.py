"""The provider `ec2`: carries out the contract of `base` with EC2's API.

Owns the meaning of the contract's calls in EC2's terms. `poller` keeps the machines' states, `batch` merges calls, `calls`
makes them. Nothing here outlives the daemon: instances are found again by their id or their tags. The fleet uses it through
`base.Provider`; the service runs it.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from bentpipe.config.model import Ec2Section, MachineSection
from bentpipe.daemon.errors import (
    LaunchTokenSpent,
    MachineNotFound,
    ProviderError,
    ProviderPermanent,
    ProviderPermission,
    ProviderRetryable,
    SleepTooEarly,
)
from bentpipe.daemon.model import Machine, MachineId, MachineState, MachineTraits, SleepMode
from bentpipe.daemon.providers.ec2.alternatives import Alternative, CapacityMemory
from bentpipe.daemon.providers.ec2.batch import Batcher, StateChange
from bentpipe.daemon.providers.ec2.calls import ApiName, Ec2Calls
from bentpipe.daemon.providers.ec2.capacity import objection_of, types_for, types_in_place, zone_is_empty
from bentpipe.daemon.providers.ec2.descriptions import Description
from bentpipe.daemon.providers.ec2.entry import Ec2Machine, Entry
from bentpipe.daemon.providers.ec2.errors import NO_SPOT_REQUEST, Ec2Failure, FailureKind
from bentpipe.daemon.providers.ec2.launching import OF_ONE_ALTERNATIVE, Launcher
from bentpipe.daemon.providers.ec2.poller import UNSEEN_GRACE_S, Poller
from bentpipe.daemon.providers.ec2.reserve import Ec2Reserve
from bentpipe.daemon.providers.ec2.traits import TRAITS
from bentpipe.daemon.tasks import Owner, run_owned

if TYPE_CHECKING:
    from types_boto3_ec2.type_defs import InstanceStateChangeTypeDef

YOUNG_S = 300.0
"""For about two minutes after a launch EC2 refuses to hibernate, with a message that is not documented. Within this time a
refusal because of the state counts as that refusal, and the sleep is tried again."""

log = logging.getLogger("bentpipe.providers.ec2")

ASLEEP = (MachineState.STOPPING, MachineState.STOPPED, MachineState.HIBERNATED)


class Ec2Provider:
    """Starts, watches and stops EC2 instances. `run` must run while any other method is used."""

    def __init__(self, section: Ec2Section, machines: Mapping[MachineId, Ec2Machine]) -> None:
        self._fleet = section.fleet
        self._calls = Ec2Calls(section)
        self._memory = CapacityMemory()
        self._poller = Poller(section, machines, self._calls, self._memory)
        self._launcher = Launcher(section.fleet, self._calls, self._poller, self._memory, unseen_s=UNSEEN_GRACE_S)
        self._starts = Batcher(lambda: self._calls.take_turn(ApiName.START), self._send_start)
        self._stops = {
            kind: Batcher(lambda: self._calls.take_turn(ApiName.STOP), functools.partial(self._send_stop, *kind))
            for kind in ((False, False), (True, False), (False, True))
        }
        """By (hibernate, force)."""
        self._running = False
        self.reserve = Ec2Reserve(section.fleet, self._calls, self._poller, self._launcher, self._starts)
        """The machines that no satellite has yet."""

    def follow(self, section: Ec2Section) -> None:
        """Other rates and times hold from now on; region, endpoint and fleet stay those of the start."""
        self._calls.follow(section.rates)
        self._poller.follow(section)

    def add(self, machine_id: MachineId, machine: Ec2Machine) -> None:
        """Know one more machine."""
        self._poller.add(machine_id, machine)

    def forget(self, machine_id: MachineId) -> None:
        """Know a machine no more. Its instance, if there is one, is left as it is."""
        self._poller.forget(machine_id)

    @property
    def call_counts(self) -> Mapping[tuple[str, str], int]:
        """The number of calls, by API and AWS's error code ("ok" if there was none)."""
        return {(api.value, code): count for (api, code), count in self._calls.counts.items()}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the poller and the merged calls, until cancelled. The instances run on."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_owned, Owner("EC2 poller"), self._poller.run_poller)
            for batcher in (self._starts, *self._stops.values()):
                nursery.start_soon(run_owned, Owner("EC2 batches"), batcher.run_batches)
            self._running = True
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._running = False

    async def aclose(self) -> None:
        """Close the connections. Nothing is stopped."""
        await trio.lowlevel.checkpoint()
        self._calls.close()

    async def describe(self, machine_id: MachineId) -> Machine:
        """Return the machine's present state. Raises MachineNotFound, or the error for EC2's answer."""
        entry = self._entry(machine_id)
        return await self._poller.describe(entry)

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return as soon as the machine differs from `seen`. While EC2 does not answer, nothing changes."""
        return await self._poller.wait_changed(seen)

    def traits_of(self, machine_id: MachineId) -> MachineTraits:
        """The same for every instance."""
        return TRAITS

    def vouches_nowait(self, look: Machine) -> bool:
        """Whether EC2 has described the instance so lately that another cannot have its address by now."""
        return self._poller.vouches(look)

    async def start(self, machine_id: MachineId) -> None:
        """StartInstances, in one call with other machines that start now.

        If its zone has no capacity, it gets another type, if the configuration and EC2 allow that.

        Raises MachineNotFound, ProviderRetryable (it is stopping), ProviderCapacity, or the error for EC2's answer.
        """
        entry = self._entry(machine_id)
        instance_id = await self._instance_id(entry)
        if entry.unproven == instance_id:
            await self.reserve.start_unproven(entry, instance_id, self.terminate)
            return
        try:
            await self._start_with_capacity(entry, instance_id)
        except Ec2Failure as failure:
            if failure.kind not in (FailureKind.WRONG_STATE, FailureKind.NOT_FOUND):
                raise self._error(entry, failure) from failure
            look = await self._poller.refresh(entry)
            is_same = entry.instance_id == instance_id
            is_up = look is not None and look.state in (MachineState.PENDING, MachineState.RUNNING)
            if is_up and (not is_same or failure.kind is FailureKind.WRONG_STATE):
                return
            if is_same:
                raise self._error(entry, failure) from failure
            await self._start_successor(entry)

    async def _start_with_capacity(self, entry: Entry, instance_id: str) -> None:
        """Start the instance with the first type of which its zone has one. Raises Ec2Failure, ProviderCapacity."""
        seen = entry.seen
        if seen is None:
            await self._starts.add(instance_id)
            return
        failures: list[tuple[Alternative, Ec2Failure]] = []
        for kind in self._memory.ordered(types_in_place(entry, seen), trio.current_time()):
            try:
                await self._change_type(entry, instance_id, kind.instance_type)
                await self._starts.add(instance_id)
            except Ec2Failure as failure:
                is_of_type = failure.api == ApiName.MODIFY.value and failure.kind in OF_ONE_ALTERNATIVE
                if failure.kind is not FailureKind.CAPACITY and not is_of_type:
                    raise
                self._memory.lacked(kind, trio.current_time())
                failures.append((kind, failure))
            else:
                self._memory.worked(kind, trio.current_time())
                return
        raise zone_is_empty(seen, failures) from failures[0][1]

    async def _change_type(self, entry: Entry, instance_id: str, instance_type: str | None) -> None:
        """Give a stopped instance another type, if it has not got it. Raises Ec2Failure."""
        if entry.seen is None or instance_type in (None, entry.seen.instance_type):
            return
        await self._calls.change_type(instance_id, instance_type)
        fields = {"satellite": entry.machine.satellite, "before": entry.seen.instance_type, "type": instance_type}
        log.info("an instance has another type", extra={"fields": fields})
        entry.seen = dataclasses.replace(entry.seen, instance_type=instance_type)

    async def _start_successor(self, entry: Entry) -> None:
        """Start the instance that has taken the place of one that is gone."""
        try:
            await self._starts.add(await self._instance_id(entry))
        except Ec2Failure as failure:
            raise self._error(entry, failure) from failure

    async def stop(self, machine_id: MachineId, mode: SleepMode, *, force: bool = False) -> None:
        """StopInstances, in one call with other machines that stop now. A forced stop is never a hibernation.

        Raises MachineNotFound, SleepModeRefused, SleepTooEarly, ProviderRetryable (it is pending), or the error for EC2's
        answer.
        """
        entry = self._entry(machine_id)
        await self._poller.refresh(entry)  # somebody may have changed its tags since the last description
        instance_id = await self._instance_id(entry)
        hibernate = mode is SleepMode.HIBERNATE and not force
        try:
            await self._stops[hibernate, force].add(instance_id)
        except Ec2Failure as failure:
            if failure.kind in (FailureKind.WRONG_STATE, FailureKind.NO_HIBERNATION, FailureKind.TOO_EARLY):
                look = await self._poller.refresh(entry)
                if look is not None and look.state in ASLEEP:
                    return
                if hibernate and failure.kind is FailureKind.WRONG_STATE and _is_young(entry):
                    raise SleepTooEarly(str(failure), peer_hint=FailureKind.TOO_EARLY.value) from failure
            raise self._error(entry, failure) from failure

    async def launch(self, machine_id: MachineId, token: str) -> None:
        """RunInstances by the launch template of the configuration, with a client token made of `token`.

        If EC2 has no capacity for one alternative, the next is tried.

        Raises ProviderPermanent (no template, or the token was used for another launch), LaunchTokenSpent,
        ProviderCapacity, or the error for EC2's answer.
        """
        entry = self._entry(machine_id)
        look = await self._poller.refresh(entry)
        if look is not None and look.state is not MachineState.TERMINATED:
            return
        try:
            seen = await self._launcher.launch(entry, token)
        except Ec2Failure as failure:
            raise self._error(entry, failure) from failure
        if seen.state is MachineState.TERMINATED:
            raise LaunchTokenSpent(f"token {token} has launched {seen.instance_id}, which is terminated: use another")
        self._poller.launched(entry, seen)

    async def objection_to(self, machine_id: MachineId, section: MachineSection) -> str:
        """By the instance as EC2 describes it now. Raises the error for EC2's answer."""
        entry = self._entry(machine_id)
        look = await self._poller.refresh(entry)
        if look is None or look.state is MachineState.TERMINATED or entry.seen is None:
            return ""
        return objection_of(entry, entry.seen, section)

    async def adapt(self, machine_id: MachineId, section: MachineSection) -> None:
        """ModifyInstanceAttribute, if the instance's type is none of the section's.

        Raises ProviderPermanent (EC2 does not change it), ProviderRetryable (it is not stopped), or the error for EC2's
        answer.
        """
        entry = self._entry(machine_id)
        if objection := await self.objection_to(machine_id, section):
            raise ProviderPermanent(objection)
        seen, wanted = entry.seen, section.ec2
        gone = entry.look is None or entry.look.state is MachineState.TERMINATED
        types = [] if gone or seen is None or wanted is None else types_for(seen, wanted)
        if seen is None or not types or seen.instance_type in types:
            return
        kinds = [Alternative("", each, seen.zone) for each in types]
        kind = self._memory.ordered(kinds, trio.current_time())[0]
        try:
            await self._change_type(entry, seen.instance_id, kind.instance_type)
        except Ec2Failure as failure:
            raise self._error(entry, failure) from failure

    async def terminate(self, machine_id: MachineId) -> None:
        """TerminateInstances, if the instance has our fleet's and the satellite's tags.

        Raises ProviderPermission if it does not, or the error for EC2's answer.
        """
        entry = self._entry(machine_id)
        look = await self._poller.refresh(entry)
        if look is None or entry.seen is None or entry.instance_id is None:
            return
        if look.state is MachineState.TERMINATED and not entry.objection:
            return
        if dataclasses.replace(entry.mark, given=False).objection(entry.seen):
            raise ProviderPermission(
                f"{entry.instance_id} is not terminated: it does not have the tags {entry.mark.words}",
                peer_hint="the instance is not marked as ours",
            )
        try:
            await self._cancel_spot(entry.seen)
            await self._calls.terminate(entry.instance_id)
        except Ec2Failure as failure:
            error = self._error(entry, failure)
            if not isinstance(error, MachineNotFound):
                raise error from failure
            look = await self._poller.refresh(entry)
            if look is not None and look.state is not MachineState.TERMINATED:
                raise ProviderRetryable(str(failure), peer_hint=error.peer_hint) from failure
        self._poller.terminated(entry)

    async def _cancel_spot(self, seen: Description) -> None:
        """Cancel the request of a Spot Instance: EC2 would launch another instance by it. Raises Ec2Failure."""
        if not seen.spot_request:
            return
        try:
            await self._calls.cancel_spot(seen.spot_request)
        except Ec2Failure as failure:
            if failure.code != NO_SPOT_REQUEST:
                raise

    def _entry(self, machine_id: MachineId) -> Entry:
        entry = self._poller.entry(machine_id)
        if not self._running:
            raise ProviderRetryable("the EC2 provider is not running")
        return entry

    async def _instance_id(self, entry: Entry) -> str:
        """The machine's instance; asks EC2 if it is not known. Raises MachineNotFound."""
        if entry.lost or not entry.asked:
            await self._poller.refresh(entry)
        else:
            await trio.lowlevel.checkpoint()
        gone = entry.look is None or entry.look.state is MachineState.TERMINATED
        if entry.instance_id is None or gone:
            reason = "" if entry.look is None else entry.look.reason
            words = f"{entry.machine.satellite} has no instance {reason}".rstrip()
            raise MachineNotFound(words, peer_hint=FailureKind.NOT_FOUND.value)
        return entry.instance_id

    def _error(self, entry: Entry, failure: Ec2Failure) -> ProviderError:
        """The fleet's error, from the failure and the machine's state."""
        gone = entry.look is not None and entry.look.state is MachineState.TERMINATED
        if failure.kind is FailureKind.WRONG_STATE and gone:
            return MachineNotFound(str(failure), peer_hint=FailureKind.NOT_FOUND.value)
        if failure.kind is FailureKind.NOT_FOUND:
            self._poller.want(entry)
            if trio.current_time() < entry.visible_by:
                return ProviderRetryable(str(failure), peer_hint="the machine has just been launched")
        return failure.to_error()

    async def _send_start(self, instance_ids: Sequence[str], turn_taken: bool) -> dict[str, StateChange]:
        return self._accepted(await self._calls.start(instance_ids, turn_taken=turn_taken))

    async def _send_stop(
        self, hibernate: bool, force: bool, instance_ids: Sequence[str], turn_taken: bool
    ) -> dict[str, StateChange]:
        return self._accepted(
            await self._calls.stop(instance_ids, hibernate=hibernate, force=force, turn_taken=turn_taken)
        )

    def _accepted(self, changes: "Sequence[InstanceStateChangeTypeDef]") -> dict[str, StateChange]:
        """Tell the poller, here and not in the calling task: that may have been cancelled since."""
        found = {
            each["InstanceId"]: StateChange(each["PreviousState"]["Name"], each["CurrentState"]["Name"])
            for each in changes
        }
        for instance_id, change in found.items():
            self._poller.acted(instance_id, change.before, change.after)
        return found


def _is_young(entry: Entry) -> bool:
    return entry.seen is not None and time.time() - entry.seen.launched_at < YOUNG_S
