"""Launches an instance by the first alternative that EC2 has capacity for, and never a second one.

Each alternative has a token of its own, so EC2 cannot tell that two of them belong to one launch. While the outcome of one
is not known, no other is tried: see `daemon/providers/attempts.py`. An attempt without an answer is repeated first, with its
token. If EC2 refuses the repetition, the first call may have been carried out nevertheless, or be under way. So the instance
is looked for by its token, and the next alternative waits until EC2 would have shown it.
"""

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, cast

import trio

from bentpipe.daemon.errors import (
    LaunchTokenSpent,
    ProviderCapacity,
    ProviderError,
    ProviderPermanent,
    ProviderPermission,
    ProviderRetryable,
)
from bentpipe.daemon.ids import client_token
from bentpipe.daemon.model import Fault, MachineState
from bentpipe.daemon.providers.attempts import Attempt, current_record
from bentpipe.daemon.providers.ec2.alternatives import Alternative, CapacityMemory, alternatives_of
from bentpipe.daemon.providers.ec2.calls import Ec2Calls
from bentpipe.daemon.providers.ec2.descriptions import Description, fault_of, read_description
from bentpipe.daemon.providers.ec2.entry import Entry
from bentpipe.daemon.providers.ec2.errors import Ec2Failure, FailureKind, lack_words
from bentpipe.daemon.providers.ec2.launch import launch_request, placed
from bentpipe.daemon.providers.ec2.poller import Poller

if TYPE_CHECKING:
    from types_boto3_ec2.type_defs import ResponseLaunchTemplateDataTypeDef, RunInstancesRequestTypeDef

log = logging.getLogger("bentpipe.providers.ec2")

OF_ONE_ALTERNATIVE = frozenset(
    {FailureKind.CAPACITY, FailureKind.PERMANENT, FailureKind.PERMISSION, FailureKind.NO_HIBERNATION}
)
"""Refusals that may concern one alternative alone. After others, such as throttling, the next one would fare no better."""
DOUBT_WORDS = "an earlier call was not answered, and may have launched a machine that cannot be seen yet"


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """What all alternatives of a launch have in common."""

    template: str
    data: "ResponseLaunchTemplateDataTypeDef"
    root_device: str


class Launcher:
    """Launches instances. Its methods raise Ec2Failure and ProviderError."""

    def __init__(self, fleet: str, calls: Ec2Calls, poller: Poller, memory: CapacityMemory, *, unseen_s: float) -> None:
        """`unseen_s`: for so long after a launch EC2 may not know the new instance."""
        self._unseen_s = unseen_s
        self._fleet = fleet
        self._calls = calls
        self._poller = poller
        self._memory = memory

    async def launch(self, entry: Entry, token: str) -> Description:
        """Launch an instance, or return the one that the token has launched, terminated or not."""
        plan = await self._plan(entry)
        alternatives = alternatives_of(entry.machine.section)
        record = current_record()
        earlier = record.open
        if earlier is not None and earlier.alternative not in {each.name for each in alternatives}:
            found = await self._settle(entry, token, earlier)
            if found is not None:
                return found
            await record.write(None)
        refusals: list[tuple[Alternative, Ec2Failure]] = []
        for alternative in self._ordered(alternatives, record.open):
            try:
                seen = await self._attempt(entry, token, alternative, plan)
            except Ec2Failure as failure:
                if record.open is not None or failure.kind not in OF_ONE_ALTERNATIVE:
                    raise
                self._note_refusal(entry, alternative, failure)
                refusals.append((alternative, failure))
            else:
                self._note_answer(entry, alternative, seen)
                return seen
        raise _all_refused(refusals)

    def _ordered(self, alternatives: tuple[Alternative, ...], earlier: Attempt | None) -> list[Alternative]:
        """The order in which they are tried: the one whose outcome is not known comes first."""
        found = self._memory.ordered(alternatives, trio.current_time())
        if earlier is not None:
            found.sort(key=lambda each: each.name != earlier.alternative)
        return found

    async def _attempt(self, entry: Entry, token: str, alternative: Alternative, plan: _Plan) -> Description:
        """Launch by one alternative. If it raises and the record is closed, the alternative has made nothing."""
        record = current_record()
        doubt = record.open
        request = await self._request(entry, token, alternative, plan)
        now = Attempt(alternative.name, time.time_ns() // 1000)
        await record.write(now)
        try:
            return await self._run(entry, request)
        except Ec2Failure as failure:
            if not failure.is_refusal:
                raise
            if failure.after_unanswered:
                doubt = now
            if doubt is not None and (found := await self._settle(entry, token, doubt, failure)) is not None:
                return found
            await record.write(None)
            raise

    async def _settle(
        self, entry: Entry, token: str, doubt: Attempt, refused: Ec2Failure | None = None
    ) -> Description | None:
        """Look what an attempt without an answer has made. None if it has made nothing.

        Raises ProviderRetryable while that is not certain.
        """
        found = await self._find(entry, client_token(self._fleet, entry.machine.satellite, token, doubt.alternative))
        if found is not None:
            return found
        left_s = self._unseen_s - (time.time() - doubt.at_us / 1e6)
        if left_s <= 0:
            return None
        await current_record().write(doubt)
        reason = f" ({refused})" if refused is not None else ""
        raise ProviderRetryable(f"{DOUBT_WORDS}: {left_s:.0f} s left{reason}", peer_hint=DOUBT_WORDS)

    async def _find(self, entry: Entry, token: str) -> Description | None:
        for instance in await self._calls.find_launched(token):
            seen = read_description(instance, entry.machine.section)
            if not entry.mark.objection(seen) or seen.state is MachineState.TERMINATED:
                return seen
        return None

    def _note_refusal(self, entry: Entry, alternative: Alternative, failure: Ec2Failure) -> None:
        self._memory.lacked(alternative, trio.current_time())
        if not alternative.is_only:
            fields = {"satellite": entry.machine.satellite, "alternative": alternative.words, "error": str(failure)}
            level = logging.INFO if failure.kind is FailureKind.CAPACITY else logging.ERROR
            log.log(level, "an alternative cannot be launched", extra={"fields": fields})

    def _note_answer(self, entry: Entry, alternative: Alternative, seen: Description) -> None:
        if seen.state is not MachineState.TERMINATED:
            entry.launched_by = (seen.instance_id, alternative)
            self._memory.worked(alternative, trio.current_time())
        elif fault_of(seen.reason_code) is Fault.CAPACITY:
            self._memory.lacked(alternative, trio.current_time())

    async def _plan(self, entry: Entry) -> _Plan:
        section = entry.machine.section
        template = section.launch_template
        if template is None:
            raise ProviderPermanent(f"{entry.machine.satellite} has no launch_template in [satellite.ec2]")
        data = await self._calls.template(template, section.launch_template_version)
        image_id = data.get("ImageId", "")
        if not image_id:
            raise ProviderPermanent(f"launch template {template} names no image")
        root_device = await self._calls.root_device(image_id)
        if not root_device:
            raise ProviderPermanent(f"EC2 does not say what the root volume of {image_id} is called")
        return _Plan(template, data, root_device)

    async def _request(
        self, entry: Entry, token: str, alternative: Alternative, plan: _Plan
    ) -> "RunInstancesRequestTypeDef":
        section, satellite = entry.machine.section, entry.machine.satellite
        instance_type = alternative.instance_type or plan.data.get("InstanceType", "")
        if not instance_type:
            raise ProviderPermanent(f"launch template {plan.template} names no type: set instance_type")
        request = launch_request(
            section,
            template=plan.template,
            data=plan.data,
            root_device=plan.root_device,
            hibernation=section.hibernation and await self._poller.type_hibernates(instance_type),
            token=client_token(self._fleet, satellite, token, alternative.name),
            mark=entry.mark,
        )
        if entry.machine.user_data is not None and (data := await entry.machine.user_data(token)):
            request["UserData"] = cast("str", data)  # boto3 takes bytes too, and encodes both in base 64
        return placed(request, alternative, plan.data)

    async def _run(self, entry: Entry, request: "RunInstancesRequestTypeDef") -> Description:
        """Launch, and return the instance if it has the satellite's tags.

        If the same token was used with another configuration, returns the instance of that launch. Raises Ec2Failure, and
        ProviderPermission if the instance has another satellite's tags.
        """
        section = entry.machine.section
        try:
            found = [read_description(await self._calls.launch(request), section)]
        except Ec2Failure as failure:
            if failure.kind is not FailureKind.MISMATCH:
                raise
            found = [
                read_description(each, section) for each in await self._calls.find_launched(request["ClientToken"])
            ]
            if not found:
                self._judge_mismatch(entry, request["ClientToken"])
                raise
        for seen in found:
            objection = entry.mark.objection(seen)
            if not objection or seen.state is MachineState.TERMINATED:
                return seen
        raise ProviderPermission(
            f"the launch's token has made an instance before: {objection}",
            peer_hint="the launch has led to an instance that is not marked as this satellite's",
        )

    def _judge_mismatch(self, entry: Entry, token: str) -> None:
        """Note that a token was used for another launch, whose instance EC2 does not show, or not yet.

        Raises LaunchTokenSpent when EC2 would long have shown it: no launch with this token can ever work again.
        """
        now = trio.current_time()
        if entry.mismatch is None or entry.mismatch[0] != token:
            entry.mismatch = (token, now)
        elif now >= entry.mismatch[1] + self._unseen_s:
            raise LaunchTokenSpent(f"token {token} was used for another launch, of which nothing is left: use another")


def _all_refused(refusals: list[tuple[Alternative, Ec2Failure]]) -> ProviderError | Ec2Failure:
    """The error for a launch that every alternative has refused: a lack of capacity, if one of them lacks it."""
    if len(refusals) == 1:
        return refusals[0][1]
    lacking = [failure for _, failure in refusals if failure.kind is FailureKind.CAPACITY]
    if not lacking:
        return refusals[0][1]
    words = "; ".join(f"{alternative.words}: {failure}" for alternative, failure in refusals)
    tried = ", ".join(f"{alternative.words} ({failure.code})" for alternative, failure in refusals)
    return ProviderCapacity(words, peer_hint=f"{lack_words(each.code for each in lacking)}: {tried}")
