"""A satellite in a guest, one for each module: it takes half a minute to make."""

import time
from collections.abc import Iterator

import pytest

from beds.guest.image import guest_image
from beds.guest.machine import Guest
from beds.guest.satellite import BUILDKIT_PORT, RESPONDER_PORT, Answers, GuestSatellite
from beds.peers.builds import Missing

IDLE_S = 5.0


@pytest.fixture(scope="module")
def satellite() -> Iterator[GuestSatellite]:
    try:
        image = guest_image()
        guest = Guest(image, [BUILDKIT_PORT, RESPONDER_PORT])
    except Missing as exc:
        pytest.skip(str(exc))
    with guest:
        installed = GuestSatellite(guest, image)
        installed.install()
        yield installed


@pytest.fixture(scope="module")
def idle(satellite: GuestSatellite) -> Answers:
    """How the responder answers when nothing else runs."""
    with satellite.asked() as answers:
        time.sleep(IDLE_S)
    assert answers[0].failed == ()
    return answers[0]
