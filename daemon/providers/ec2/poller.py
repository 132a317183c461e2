"""Knows the state of every machine: one task looks at EC2 for all other tasks, and tells those that wait for a change.

Looks are taken in rounds, one after the other, so that an older answer never overwrites a newer one. A request that comes
while a round is under way belongs to the next round. Machines that are starting or stopping are looked at every `poll`, all
of them in one call, and the others every `sweep`.

EC2 is eventually consistent: for a while after a call it may show the state from before the call, or not know an instance
that it has just launched. By the times below, such answers are recognised and ignored.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Mapping, Set

import trio

from bentpipe.config.model import Ec2Section
from bentpipe.daemon.errors import MachineNotFound
from bentpipe.daemon.model import Machine, MachineId, MachineState
from bentpipe.daemon.providers.ec2.alternatives import CapacityMemory
from bentpipe.daemon.providers.ec2.calls import ApiName, Ec2Calls
from bentpipe.daemon.providers.ec2.capacity import judged
from bentpipe.daemon.providers.ec2.descriptions import (
    FLEET_TAG,
    RESERVE_TAG,
    SATELLITE_TAG,
    Description,
    Mark,
    foreign_machine_of,
    machine_of,
    read_description,
    state_of,
)
from bentpipe.daemon.providers.ec2.entry import NO_INSTANCE, Ec2Machine, Entry, Hosts, Outdated
from bentpipe.daemon.providers.ec2.errors import Ec2Failure, failure_of
from bentpipe.daemon.providers.series import Series
from bentpipe.daemon.tasks import Decision, Owner, note_failure, run_owned

log = logging.getLogger("bentpipe.providers.ec2")

GATHER_S = 0.01
"""How long a round waits for further requests: at the start these come from the whole fleet."""
UNSEEN_GRACE_S = 90.0
"""For this long after a launch EC2 may not know the new id. Seconds are usual; other tools had to allow a minute."""
RELIED_S = 30.0
"""For this long after a client came, its machine is looked at ahead of time: builds come in bursts of connections."""
ENDED_KEPT_S = 3600.0
"""EC2 shows a terminated instance for an hour at most; after that no answer can name it."""
OUTDATED_GRACE_S = 10.0
"""For this long after a start or stop EC2 may show the state from before it."""
TYPES_RETRY_S = 600.0
"""Time until the next attempt if EC2 cannot be asked about instance types (a policy may forbid it)."""

SEARCH_S, SEARCH_FOR_S = 5.0, 300.0
"""Time between looks by tags for the successor of a machine that is gone, and for how long. Then the sweep finds it."""

MOVING = (MachineState.PENDING, MachineState.STOPPING)


@dataclasses.dataclass(slots=True)
class _Round:
    wanted: set[MachineId] = dataclasses.field(default_factory=set)
    sweeping: bool = False
    """Look by tags too, for machines that are found by tags: other instances may have the same tags."""
    begun: trio.Event = dataclasses.field(default_factory=trio.Event)
    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    failure: Ec2Failure | None = None


class Poller:
    """Looks at the machines. `run_poller` must run."""

    def __init__(
        self,
        section: Ec2Section,
        machines: Mapping[MachineId, Ec2Machine],
        calls: Ec2Calls,
        memory: CapacityMemory | None = None,
    ) -> None:
        self._memory = memory or CapacityMemory()
        self._ended: dict[str, float] = {}
        """The instances that were terminated here, and when. They never live again, whatever a late answer shows."""
        self._section = section
        self._calls = calls
        self._hosts: Hosts = collections.defaultdict(set)
        self._entries: dict[MachineId, Entry] = {}
        for machine_id, machine in machines.items():
            self.add(machine_id, machine)
        self._types: dict[str, bool] = {}
        self._types_retry_at = float("-inf")
        self._next = _Round()
        self._followed = trio.Event()
        self._series = Series(log, "look at machines", {})

    def follow(self, section: Ec2Section) -> None:
        """Other times hold from now on. The fleet stays what it is."""
        self._section = section
        self._followed.set()
        self._followed = trio.Event()

    def add(self, machine_id: MachineId, machine: Ec2Machine) -> None:
        """Look at one more machine."""
        mark = _mark(self._section.fleet, machine)
        self._entries[machine_id] = Entry(machine_id, machine, mark, machine.section.instance_id, self._hosts)

    def forget(self, machine_id: MachineId) -> None:
        """Look at a machine no more."""
        entry = self._entries.pop(machine_id, None)
        if entry is not None:
            entry.show(None)  # its address is free for another machine

    def entry(self, machine_id: MachineId) -> Entry:
        """Return the entry of a configured machine. Raises MachineNotFound."""
        try:
            return self._entries[machine_id]
        except KeyError:
            raise MachineNotFound(f"no EC2 instance is configured as {machine_id}") from None

    async def refresh(self, entry: Entry) -> Machine | None:
        """Look at the machine now, together with all other requests. Raises ProviderError."""
        this = self._next
        self.want(entry)
        await this.done.wait()
        if this.failure is not None:
            raise this.failure.to_error() from this.failure
        return entry.look

    async def describe(self, entry: Entry) -> Machine:
        """Look at the machine as `refresh` does. Raises MachineNotFound too."""
        look = await self.refresh(entry)
        if look is None:
            how = entry.instance_id or f"{SATELLITE_TAG}={entry.machine.satellite}"
            raise MachineNotFound(f"EC2 knows no instance {how}", peer_hint=NO_INSTANCE)
        return look

    async def wait_changed(self, seen: Machine) -> Machine:
        """Return as soon as the machine differs from `seen`. A machine that is not configured is TERMINATED."""
        await trio.lowlevel.checkpoint()
        entry = self._entries.get(seen.machine_id)
        if entry is None:
            gone = Machine(seen.machine_id, MachineState.TERMINATED)
            return gone if seen != gone else await trio.sleep_forever()
        if not entry.asked:
            self.want(entry)
        while (look := entry.shown()) is None or look == seen:
            await entry.changed.wait()
        return look

    def vouches(self, look: Machine) -> bool:
        """Whether the machine certainly has the look's address now. While this is asked, the poller keeps it certain."""
        entry = self._entries.get(look.machine_id)
        if entry is None or look.address is None or entry.look != look:
            return False
        now = trio.current_time()
        entry.relied_at = now
        others = self._hosts.get(look.address.host, set()) - {look.machine_id}
        for each in others:
            self.want(self._entries[each])
        return not others and now - entry.seen_at <= self._section.address_age_s

    def want(self, entry: Entry) -> None:
        """Let the next round look at the machine."""
        self._next.wanted.add(entry.machine_id)
        self._next.begun.set()

    def acted(self, instance_id: str, before: str, after: str) -> None:
        """A start or stop was accepted. The states before and after have EC2's names."""
        entry = next((each for each in self._entries.values() if each.instance_id == instance_id), None)
        if entry is None:  # the machine is another instance by now
            return
        entry.acted_at = trio.current_time()
        if before != after:
            self._outdate(entry, before)
            state = state_of(after, "")
            if state in MOVING:
                can_hibernate = entry.look is None or entry.look.can_hibernate
                entry.show(Machine(entry.machine_id, state, can_hibernate=can_hibernate))
        self.want(entry)

    def terminated(self, entry: Entry) -> None:
        """A termination was accepted."""
        entry.acted_at = trio.current_time()
        if entry.seen is not None:
            self._outdate(entry, entry.seen.raw_state)
        if entry.instance_id is not None:
            self._ended = {each: at for each, at in self._ended.items() if entry.acted_at < at + ENDED_KEPT_S}
            self._ended[entry.instance_id] = entry.acted_at
        entry.show(Machine(entry.machine_id, MachineState.TERMINATED, reason="terminated by bentpipe"))
        self.want(entry)

    def launched(self, entry: Entry, seen: Description) -> None:
        """The machine is another instance now."""
        entry.acted_at = trio.current_time()
        entry.visible_by = entry.acted_at + UNSEEN_GRACE_S
        entry.outdated = None
        entry.instance_id, entry.seen = seen.instance_id, seen
        self._show(entry, seen)
        self.want(entry)

    def assigned(self, entry: Entry, seen: Description) -> None:
        """A machine of the reserve was started and is the satellite's now. `seen` is from before that."""
        entry.assigned = seen.instance_id, trio.current_time() + OUTDATED_GRACE_S
        entry.unproven = seen.instance_id
        tags = {key: value for key, value in seen.tags.items() if key != RESERVE_TAG} | entry.mark.tags
        came = dataclasses.replace(seen, raw_state="pending", state=MachineState.PENDING, tags=tags, host="")
        self.launched(entry, came)
        if seen.state is not MachineState.RUNNING:
            entry.outdated = Outdated(
                seen.instance_id, seen.raw_state, seen.launched_at, entry.acted_at + OUTDATED_GRACE_S
            )

    async def run_poller(self) -> None:
        """Take rounds for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_owned, Owner("EC2 clock"), self._run_clock, lambda: self._section.poll_s, True)
            nursery.start_soon(run_owned, Owner("EC2 clock"), self._run_clock, lambda: self._section.sweep_s, False)
            nursery.start_soon(run_owned, Owner("EC2 clock"), self._run_address_clock)
            nursery.start_soon(run_owned, Owner("EC2 clock"), self._run_search)
            while True:
                await self._next.begun.wait()
                await trio.sleep(GATHER_S)
                this, self._next = self._next, _Round()
                try:
                    await self._look(this.wanted, sweeping=this.sweeping)
                except Ec2Failure as failure:
                    this.failure = failure
                except Exception as exc:  # an unforeseen answer
                    note_failure(Owner("EC2 look", decision=Decision.GIVE_UP), exc)
                    this.failure = failure_of(ApiName.DESCRIBE.value, exc)
                finally:
                    this.done.set()
                self._tell_failing(this.failure)

    async def type_hibernates(self, instance_type: str) -> bool:
        """Return whether a type can hibernate. Raises Ec2Failure."""
        if instance_type not in self._types:
            self._types |= await self._calls.hibernation_of([instance_type])
        return self._types.get(instance_type, False)

    async def _pause(self, period_s: Callable[[], float]) -> None:
        """Wait for one period, also if the configuration changes it meanwhile."""
        began = trio.current_time()
        while True:
            with trio.move_on_at(began + period_s()) as over:
                await self._followed.wait()
            if over.cancelled_caught:
                return

    async def _run_clock(self, period_s: Callable[[], float], only_moving: bool) -> None:
        while True:
            await self._pause(period_s)
            for entry in self._entries.values():
                if not only_moving or (entry.look is not None and entry.look.state in MOVING):
                    self.want(entry)
            self._next.sweeping |= not only_moving

    async def _run_address_clock(self) -> None:
        """Look ahead of time at machines in use, so that their next client does not wait for a look."""
        while True:
            await self._pause(lambda: self._section.address_age_s / 2)
            period_s, now = self._section.address_age_s / 2, trio.current_time()
            for entry in self._entries.values():
                if entry.host and now - entry.relied_at < RELIED_S and now - entry.seen_at >= period_s:
                    self.want(entry)

    async def _run_search(self) -> None:
        """Look for the successors of machines that have just gone: an Auto Scaling group makes one within minutes."""
        while True:
            await trio.sleep(SEARCH_S)
            now = trio.current_time()
            for entry in self._entries.values():
                if entry.lost and now < entry.lost_at + SEARCH_FOR_S:
                    self.want(entry)

    async def _look(self, wanted: Set[MachineId], *, sweeping: bool) -> None:
        began = trio.current_time()
        entries = [each for each in self._entries.values() if each.machine_id in wanted or not each.asked]
        sought = {each.machine.satellite: each for each in entries if each.lost or (sweeping and not each.mark.given)}
        known = {each.instance_id: each for each in entries if not each.lost and each.instance_id is not None}
        by_id: dict[MachineId, Description] = {}
        for instance in await self._calls.describe(list(known)):
            if (entry := known.get(instance["InstanceId"])) is not None:
                by_id[entry.machine_id] = read_description(instance, entry.machine.section)
        # A machine that is gone may have a successor already. Then the waiting tasks do not need another round to get it.
        gone = [each for each in known.values() if self._may_have_successor(each, by_id.get(each.machine_id), began)]
        sought |= {each.machine.satellite: each for each in gone}
        found: list[tuple[Entry, Description]] = []
        if sought:
            found += await self._find(sought, {each.machine_id for each in gone})
        successors = {entry.machine_id for entry, _ in found}
        found += [
            (entry, by_id[entry.machine_id])
            for entry in known.values()
            if entry.machine_id in by_id and entry.machine_id not in successors
        ]
        await self._learn_types({seen.instance_type for _, seen in found})
        for entry, seen in found:
            self._take(entry, seen, began)
        answered = {entry.machine_id for entry, _ in found}
        for entry in entries:
            if entry.machine_id not in answered:
                self._miss(entry, began)

    def _may_have_successor(self, entry: Entry, seen: Description | None, began: float) -> bool:
        """Whether its instance is gone, so that another may have its tags.

        An instance that was just launched may be unseen.
        """
        if entry.mark.given:
            return False
        if seen is None:
            return began >= max(entry.acted_at, entry.visible_by)
        return seen.state is MachineState.TERMINATED or bool(entry.mark.objection(seen))

    async def _find(self, sought: Mapping[str, Entry], gone: Set[MachineId]) -> list[tuple[Entry, Description]]:
        """Look for satellites' instances by tags.

        Returns those of satellites without an instance, or with one that is `gone`.
        """
        tags = ((FLEET_TAG, [self._section.fleet]), (SATELLITE_TAG, list(sought)))
        candidates: dict[str, list[Description]] = {satellite: [] for satellite in sought}
        for instance in await self._calls.find(tags):
            if instance["InstanceId"] in self._ended:
                continue
            satellite = next((tag["Value"] for tag in instance["Tags"] if tag["Key"] == SATELLITE_TAG), "")
            if (entry := sought.get(satellite)) is not None:
                candidates[satellite].append(read_description(instance, entry.machine.section))
        chosen: list[tuple[Entry, Description]] = []
        for satellite, seen in candidates.items():
            entry = sought[satellite]
            if entry.lost or entry.machine_id in gone:
                if seen:
                    chosen.append((entry, _choose(seen)))
                    _note_rivals(entry, seen, chosen[-1][1].instance_id)
            else:
                _note_rivals(entry, seen, entry.instance_id)
        return chosen

    def _take(self, entry: Entry, seen: Description, began: float) -> None:
        """Take EC2's answer over, unless it is from before our newest call."""
        if self._entries.get(entry.machine_id) is not entry:
            return  # it was forgotten meanwhile
        if began < entry.acted_at:
            self.want(entry)
            return
        if entry.outdated is not None and entry.outdated.fits(seen, began):
            return
        entry.outdated = None
        if entry.assigned is not None and entry.assigned[0] == seen.instance_id and began < entry.assigned[1]:
            seen = dataclasses.replace(seen, tags=seen.tags | entry.mark.tags)
        if entry.unproven == seen.instance_id and seen.state is MachineState.RUNNING:
            entry.unproven = ""
        entry.instance_id, entry.seen, entry.seen_at = seen.instance_id, seen, began
        self._show(entry, seen)

    def _outdate(self, entry: Entry, before: str) -> None:
        launched_at = entry.seen.launched_at if entry.seen is not None else float("nan")
        entry.outdated = Outdated(entry.instance_id, before, launched_at, entry.acted_at + OUTDATED_GRACE_S)

    def _miss(self, entry: Entry, began: float) -> None:
        """EC2 does not know the machine's instance."""
        if began < max(entry.acted_at, entry.visible_by):
            return
        if entry.look is None:
            entry.show(None)
        elif entry.look.state is not MachineState.TERMINATED:
            words = f"EC2 does not know {entry.instance_id} any more"
            hint = "the cloud does not know its machine any more"
            entry.show(Machine(entry.machine_id, MachineState.TERMINATED, reason=words, hint=hint))

    def _show(self, entry: Entry, seen: Description) -> None:
        objection = "" if seen.state is MachineState.TERMINATED else entry.mark.objection(seen)
        if objection and objection != entry.objection:
            log.error(
                "an instance is not used",
                extra={"fields": {"satellite": entry.machine.satellite, "reason": objection}},
            )
        entry.objection = objection
        if objection:
            entry.show(foreign_machine_of(entry.machine_id, seen))
            return
        type_hibernates = self._types.get(seen.instance_type, True)
        look = machine_of(entry.machine_id, seen, entry.machine.section, type_hibernates=type_hibernates)
        entry.show(judged(self._memory, entry, seen, look))

    async def _learn_types(self, types: set[str]) -> None:
        """Ask what the types can. Without an answer we assume that they can hibernate: a refusal will show it otherwise."""
        unknown = types - self._types.keys()
        if not unknown or trio.current_time() < self._types_retry_at:
            return
        try:
            self._types |= await self._calls.hibernation_of(unknown)
        except Ec2Failure as failure:
            self._types_retry_at = trio.current_time() + TYPES_RETRY_S
            log.warning("cannot ask what instance types can", extra={"fields": {"error": str(failure)}})

    def _tell_failing(self, failure: Ec2Failure | None) -> None:
        self._series.told(None if failure is None else failure.to_error(), trio.current_time())


def _mark(fleet: str, machine: Ec2Machine) -> Mark:
    return Mark(fleet, machine.satellite, given=machine.section.instance_id is not None)


def _choose(candidates: list[Description]) -> Description:
    """Of several instances with a satellite's tags, choose one that is awake, or else the one with the smallest id.

    The chosen one is kept for as long as it lives and has the tags.
    """
    awake = (MachineState.RUNNING, MachineState.PENDING)
    return min(candidates, key=lambda each: (each.state not in awake, each.instance_id))


def _note_rivals(entry: Entry, seen: list[Description], taken: str | None) -> None:
    """Tell the operator which instances have the same tags as the one in use, whenever their list changes."""
    rivals = tuple(sorted(each.instance_id for each in seen if each.instance_id != taken))
    if rivals and rivals != entry.rivals:
        fields = {"satellite": entry.machine.satellite, "used": taken, "unused": " ".join(rivals)}
        log.error("several instances have one satellite's tags", extra={"fields": fields})
    entry.rivals = rivals
