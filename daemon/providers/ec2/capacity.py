"""What the lack of capacity means for one machine: which alternatives are left, and which types it may be given.

A machine that exists is bound to its zone by its disk. EC2 changes the type of a stopped instance, but of no Spot Instance,
and of none that was launched for hibernation (EC2's user guide, "Change the instance type").
"""

import dataclasses

import trio

from bentpipe.config.ec2_machine import MachineTypeEc2Section, SatelliteEc2Section
from bentpipe.config.model import MachineSection
from bentpipe.daemon.errors import ProviderCapacity
from bentpipe.daemon.model import Fault, Machine, MachineState
from bentpipe.daemon.providers.ec2.alternatives import Alternative, CapacityMemory, alternatives_of
from bentpipe.daemon.providers.ec2.descriptions import Description
from bentpipe.daemon.providers.ec2.entry import Entry
from bentpipe.daemon.providers.ec2.errors import Ec2Failure, lack_words


def present(seen: Description) -> Alternative:
    """The pool from which the machine is started as it is."""
    return Alternative("", seen.instance_type, seen.zone, spot=bool(seen.spot_request))


def fixed_type(seen: Description) -> str:
    """Why EC2 would not change the machine's type; "" if it would."""
    if seen.spot_request:
        return "EC2 does not change the type of a Spot Instance"
    return "EC2 does not change the type of a machine that was launched for hibernation" if seen.hibernation else ""


def types_in_place(entry: Entry, seen: Description) -> list[Alternative]:
    """The types that the machine may have where it is, by the configuration; the present one first."""
    kinds = [present(seen)]
    section = entry.machine.section
    if isinstance(section, MachineTypeEc2Section) and section.change_type and not fixed_type(seen):
        kinds += [Alternative("", each, seen.zone) for each in types_for(seen, section)]
    return list(dict.fromkeys(kinds))


def objection_of(entry: Entry, seen: Description, section: MachineSection) -> str:
    """Why the instance cannot become what `section` says with its disks kept; "" if it can."""
    wanted, present_section = section.ec2, entry.machine.section
    if wanted is None:
        return "the satellite is on EC2, and of the new size it would not be"
    if (wanted.launch_template, wanted.launch_template_version) != (
        present_section.launch_template,
        present_section.launch_template_version,
    ):
        return "the new size has another launch template, and with it another image and other disks"
    types = types_for(seen, wanted)
    if _has_templates_type(wanted) and _has_templates_type(present_section):
        return ""
    if not types:
        return (
            f"the new size names no instance type on demand that may be in {seen.zone}, where the satellite's disk is"
        )
    return "" if seen.instance_type in types else fixed_type(seen)


def _has_templates_type(section: SatelliteEc2Section) -> bool:
    """Whether a machine on demand may have the type that the template names."""
    return any(each.instance_type is None and not each.spot for each in alternatives_of(section))


def types_for(seen: Description, section: SatelliteEc2Section) -> list[str]:
    """The types by which an instance that exists is what `section` says, where it is."""
    return [
        each.instance_type
        for each in alternatives_of(section)
        if each.instance_type is not None and not each.spot and each.takes_place_in(seen.zone, seen.subnet)
    ]


def judged(memory: CapacityMemory, entry: Entry, seen: Description, look: Machine) -> Machine:
    """Add to a look whether the machine is worth another launch or start at once. A lack of capacity is noted once.

    A machine of the reserve that has never come up for its satellite holds nothing of it: another one is launched instead.
    """
    if entry.unproven == seen.instance_id and look.fault is not None and look.state is not MachineState.TERMINATED:
        return dataclasses.replace(look, other_left=True)
    if look.fault is not Fault.CAPACITY:
        return look
    start = seen.instance_id, seen.launched_at
    if entry.judged is None or entry.judged[0] != start:
        now = trio.current_time()
        if seen.state is MachineState.TERMINATED:
            options = list(alternatives_of(entry.machine.section))
            memory.lacked(_launched_by(entry, seen, options), now)
        else:
            options = types_in_place(entry, seen)
            memory.lacked(present(seen), now)
        entry.judged = start, len(options) > 1 and memory.any_left(options, now)
    return dataclasses.replace(look, other_left=entry.judged[1])


def _launched_by(entry: Entry, seen: Description, alternatives: list[Alternative]) -> Alternative:
    if entry.launched_by is not None and entry.launched_by[0] == seen.instance_id:
        return entry.launched_by[1]
    fitting = (
        each
        for each in alternatives
        if each.instance_type in (None, seen.instance_type)
        and each.spot == bool(seen.spot_request)
        and each.takes_place_in(seen.zone, seen.subnet or each.subnet or "")
    )
    return next(fitting, present(seen))


def zone_is_empty(seen: Description, failures: list[tuple[Alternative, Ec2Failure]]) -> ProviderCapacity:
    """The error for a machine that exists and cannot be started where it is."""
    types = ", ".join(f"{kind.instance_type} ({failure.code})" for kind, failure in failures)
    lack = lack_words(failure.code for _, failure in failures)
    words = f"{lack} in {seen.zone or 'its zone'}, where the satellite's disk is: {types}"
    return ProviderCapacity("; ".join([words, *(str(failure) for _, failure in failures)]), peer_hint=words)
