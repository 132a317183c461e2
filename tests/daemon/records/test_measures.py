"""What the metrics count of satellites' changes of state."""

from bentpipe.daemon.model import NO_FACTS, BootPhase, SatelliteKey, SatelliteState, StateFacts, Transition, WakePhase
from bentpipe.daemon.records.measures import Measures

KEY = SatelliteKey("acme", "linux")
BOOT = (
    (BootPhase.KERNEL, 3.0),
    (BootPhase.CLOUD_INIT, 21.0),
    (BootPhase.BUILDKIT, 12.0),
    (BootPhase.FIRST_BUILD, 40.0),
)


def transition(before: SatelliteState, after: SatelliteState, facts: StateFacts = NO_FACTS) -> Transition:
    return Transition(KEY, before, after, 0.0, "", facts=facts)


def test_a_wake_counts_when_it_has_succeeded() -> None:
    measures = Measures()
    facts = StateFacts(phases=((WakePhase.START, 0.5), (WakePhase.LISTEN, 7.0)))
    measures.note_transition(transition(SatelliteState.STARTING, SatelliteState.FAILED, facts))
    measures.note_transition(transition(SatelliteState.STARTING, SatelliteState.OPERATIONAL, facts))
    seen = measures.wake.views()
    assert {phase: (view.count, view.total) for phase, view in seen.items() if view.count} == {
        WakePhase.START.value: (1, 0.5),
        WakePhase.LISTEN.value: (1, 7.0),
    }


def test_the_phases_of_a_boot_count_when_the_time_awake_is_over() -> None:
    """They are facts of that time: the first build may be over long after the wake."""
    measures = Measures()
    facts = StateFacts(boot=BOOT)
    measures.note_transition(transition(SatelliteState.STARTING, SatelliteState.OPERATIONAL, facts))
    assert all(view.count == 0 for view in measures.boot.views().values())
    measures.note_transition(transition(SatelliteState.OPERATIONAL, SatelliteState.STOPPING, facts))
    measures.note_transition(transition(SatelliteState.OPERATIONAL, SatelliteState.STOPPING))
    seen = measures.boot.views()
    assert {phase: (view.count, view.total) for phase, view in seen.items()} == {
        phase.value: (1, ended_s) for phase, ended_s in BOOT
    }
