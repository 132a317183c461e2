"""Connects the reserve with the stores, the provider of EC2 and the ledger. Starts nothing."""

import time

from bentpipe.config.model import Config
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.reserve_giver import ReserveGiver
from bentpipe.daemon.fleet.reserve_keeper import ReserveKeeper, ReserveMeans, ReserveView
from bentpipe.daemon.ids import reserve_key
from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.registry.reserve import SpareState, StoredSpare
from bentpipe.daemon.service.machines import Machines
from bentpipe.daemon.service.stores import Stores
from bentpipe.daemon.service.user_data import UserDataMaker

CAUSE = "the reserve"


class ReserveLedger:
    """Writes to the ledger when the reserve's machines are awake, so that the report has their cost."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._states: dict[SatelliteKey, SatelliteState] = {}

    def observe(self, view: ReserveView) -> None:
        """Record what has changed since the view before."""
        states = {_key_of(row): _state_of(row, view) for row in view.rows}
        for key in {*self._states, *states}:
            after = states.get(key, SatelliteState.OFFLINE)
            before = self._states.get(key, SatelliteState.OFFLINE)
            if before is not after:
                self._recorder.record_nowait(Transition(key, before, after, time.time(), CAUSE))
        self._states = states


def _key_of(row: StoredSpare) -> SatelliteKey:
    return reserve_key(row.place.size, row.place.platform, row.place.number)


def _state_of(row: StoredSpare, view: ReserveView) -> SatelliteState:
    """As the ledger has it. A machine that was taken is the satellite's, in the ledger too."""
    if row.state is SpareState.TAKEN:
        return SatelliteState.OFFLINE
    if row.spare in view.awake:
        return SatelliteState.STARTING
    return SatelliteState.SLEEP if row.instance else SatelliteState.OFFLINE


def make_giver(config: Config, stores: Stores, machines: Machines, user_data: UserDataMaker) -> ReserveGiver | None:
    """Make what gives machines to new satellites; None if there is no store, or no machine type on EC2."""
    if stores.reserve is None or machines.ec2 is None or not any(each.ec2 for each in config.machine_type):
        return None
    return ReserveGiver(stores.reserve, machines.ec2.reserve, user_data.digest_of)


def make_reserve(
    config: Config,
    fleet: Fleet,
    stores: Stores,
    machines: Machines,
    user_data: UserDataMaker,
    giver: ReserveGiver | None,
    recorder: Recorder | None,
) -> ReserveKeeper | None:
    """Make what fills the reserve, and empties one that is not wanted any more; None as for `make_giver`."""
    if giver is None or stores.reserve is None or stores.registry is None or machines.ec2 is None:
        return None
    return ReserveKeeper(
        fleet,
        ReserveMeans(stores.reserve, stores.registry, machines.ec2.reserve, stores.coordination, giver),
        config.machine_type,
        user_data.digest_of,
        observe=(lambda view: None) if recorder is None else ReserveLedger(recorder).observe,
    )
