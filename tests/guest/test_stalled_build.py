"""A build that stalls on memory, and that the kernel may not kill: the responder ends its step, and the client reads why."""

import pytest

from beds.guest.satellite import GuestSatellite
from beds.guest.storms import NO_MEMORY
from bentpipe.daemon.image.programs.settings import RESPONDER_SETTINGS, RESPONDER_UNIT, RUNTIME
from bentpipe.proto.responder_pb2 import Kill

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

STALLS_SOON = """
sed -i 's/^STEP_SCORE = .*/STEP_SCORE = -1000/' "$1"
sed -i 's/"memory_stall_percent": [0-9]*/"memory_stall_percent": 8/; s/"memory_stall_s": [0-9]*/"memory_stall_s": 10/' "$2"
systemctl restart "$3"
"""
"""Steps have the protection of buildkitd. The guest's disk is the memory of its host, so stalls are short."""


def test_its_client_reads_that_memory_was_missing(satellite: GuestSatellite) -> None:
    satellite.guest.run(STALLS_SOON, RUNTIME, RESPONDER_SETTINGS, RESPONDER_UNIT)
    satellite.await_ready()
    before = satellite.life()
    built = satellite.build("memory", "200")
    assert built.code != 0
    assert NO_MEMORY in built.progress
    kills = satellite.status().kills
    assert kills.pressure_kills == 1
    (kill,) = kills.recent
    assert kill.cause == Kill.PRESSURE
    assert len(kill.build_refs) == 1
    assert satellite.life() == before
    assert satellite.small_build().code == 0
