"""A satellite whose machine has certificates of the daemon's own authority: the limits hold, and others are refused."""

import time

import grpc
import pytest

from beds.guest.satellite import RESPONDER_PORT, GuestSatellite
from beds.guest.storms import NO_MEMORY, Storm, survive

pytestmark = pytest.mark.slow

IDLE_S = 10.0
STORMS = (
    Storm("fork bomb", ("fork", "20"), "fork: Resource temporarily unavailable"),
    Storm("anonymous memory", ("memory", "200"), NO_MEMORY),
    Storm("CPU at nice -20", ("burn", "20", "/", "8"), None),
    Storm("writes and fsync", ("io", "20", "/", "8"), None),
)


def test_the_doctor_finds_nothing_wrong(enrolled_satellite: GuestSatellite) -> None:
    said = enrolled_satellite.guest.run("bentpipe-doctor")
    assert "FAIL" not in said
    assert "TLSv1.3 at port" in said


@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: storm.name)
def test_a_storm(enrolled_satellite: GuestSatellite, storm: Storm, capsys: pytest.CaptureFixture[str]) -> None:
    with enrolled_satellite.asked() as idle:
        time.sleep(IDLE_S)
    survived = survive(enrolled_satellite, storm, 0.0)
    with capsys.disabled():
        print(f"\n{storm.name}, TLS: {survived.words(idle[0])}")


def test_a_client_without_a_certificate_is_refused(enrolled_satellite: GuestSatellite) -> None:
    port = enrolled_satellite.guest.port(RESPONDER_PORT)
    for channel in (
        grpc.insecure_channel(f"127.0.0.1:{port}"),
        grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials()),
    ):
        with channel, pytest.raises(grpc.RpcError):
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20.0)
