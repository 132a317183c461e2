from bentpipe.daemon.demo.timeline import Change, draw_timeline
from bentpipe.daemon.model import SatelliteState


def test_each_state_has_its_place() -> None:
    changes = [
        Change("a", SatelliteState.OPERATIONAL, 104.0),
        Change("a", SatelliteState.STARTING, 102.0),
        Change("a", SatelliteState.STOPPING, 107.5),
        Change("a", SatelliteState.SLEEP, 107.6),
        Change("long", SatelliteState.FAILED, 109.0),
    ]
    lines = draw_timeline(["a", "long"], changes, 100.0, 110.0, 10)
    assert [line.plain for line in lines[:2]] == ["a    ··▒▒███░··", "long ·········✗"]
    assert lines[2].plain.startswith("seconds")
