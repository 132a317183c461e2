"""The metrics of the reserve: a part of the table in `metric_table.py`."""

from bentpipe.daemon.fleet.reserve_giver import Given
from bentpipe.daemon.registry.reserve import SpareState
from bentpipe.daemon.service.metric import Metric, MetricKind, Samples, Snapshot, by_label, counter


def _machines(look: Snapshot) -> Samples:
    keeper = look.daemon.reserve
    if keeper is None:
        return {}
    view = keeper.view
    known = {(each.place.size, each.place.platform) for each in view.rows}
    wanted = {(each.size, each.platform) for each in keeper.kinds if each.reserve}
    return {
        (size, platform, state.value): view.count(size, platform, state)
        for size, platform in sorted(known | wanted)
        for state in SpareState
    }


def _given(look: Snapshot) -> dict[str, float]:
    keeper = look.daemon.reserve
    return {outcome.value: 0 if keeper is None else keeper.given.counts[outcome] for outcome in Given}


RESERVE = (
    Metric(
        "reserve_machines",
        MetricKind.GAUGE,
        "Machines of the reserve, by machine type and state, as this host has seen them last.",
        _machines,
        "reserve.machines.{}",
        ("size", "platform", "state"),
    ),
    counter(
        "reserve_launches",
        "Machines that this host has launched for the reserve.",
        "reserve.launches",
        lambda look: 0 if look.daemon.reserve is None else look.daemon.reserve.launches,
    ),
    counter(
        "reserve_failures",
        "Launches for the reserve that were refused, and machines of it that were given up.",
        "reserve.failures",
        lambda look: 0 if look.daemon.reserve is None else look.daemon.reserve.failures,
    ),
    by_label(
        MetricKind.COUNTER,
        "reserve_given",
        "outcome",
        "Launches of machine types that have a reserve: from it, with none ready (`empty`), or after one could not be used "
        "(`failed`).",
        "reserve.given.{}",
        _given,
    ),
)
