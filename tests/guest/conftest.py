"""A satellite in a guest, one for each module: it takes half a minute to make."""

from collections.abc import Iterator

import pytest

from beds.guest.image import guest_image
from beds.guest.machine import Guest
from beds.guest.satellite import BUILDKIT_PORT, RESPONDER_PORT, GuestSatellite
from beds.peers.builds import Missing


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
