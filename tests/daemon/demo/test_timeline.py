from bentpipe.daemon.demo.timeline import draw_timeline
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.edge_host import LoggedChange


def test_each_state_has_its_place() -> None:
    changes = [
        LoggedChange("a", SatelliteState.OPERATIONAL, 104.0),
        LoggedChange("a", SatelliteState.STARTING, 102.0),
        LoggedChange("a", SatelliteState.STOPPING, 107.5),
        LoggedChange("a", SatelliteState.SLEEP, 107.6),
        LoggedChange("long", SatelliteState.FAILED, 109.0),
    ]
    lines = draw_timeline(["a", "long"], changes, 100.0, 110.0, 10)
    assert [line.plain for line in lines[:2]] == ["a    ··▒▒███░··", "long ·········✗"]
    assert lines[2].plain.startswith("seconds")
