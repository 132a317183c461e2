"""A satellite in a guest, one for each module: it takes half a minute to make."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from beds.guest.enrolled import ISSUED, DaemonTls, enrolled
from beds.guest.satellite import LOOP_FILE, VOLUME, Answers, GuestSatellite, rendered_image, running_satellite
from beds.peers.builds import Missing
from bentpipe.daemon.image.files import MachineImage

IDLE_S = 10.0
COMPUTE = 'for each in $(seq $(nproc)); do timeout "$1" sh -c "while :; do :; done" & done; wait'


@contextlib.contextmanager
def satellite_or_skip(rendered: MachineImage, tls: DaemonTls | None = None) -> Iterator[GuestSatellite]:
    """Skip the tests that need it if there is no guest here."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(running_satellite(rendered, tls))
        except Missing as exc:
            pytest.skip(str(exc))
        yield running


@pytest.fixture(scope="module")
def satellite() -> Iterator[GuestSatellite]:
    with satellite_or_skip(rendered_image()) as running:
        yield running


@pytest.fixture(scope="module")
def satellite_on_ext4() -> Iterator[GuestSatellite]:
    """Its cache is a file on the machine's disk, with a limited number of inodes."""
    with satellite_or_skip(rendered_image(LOOP_FILE)) as running:
        yield running


@pytest.fixture(scope="module")
def hibernating_satellite() -> Iterator[GuestSatellite]:
    """Its settings say that its machine hibernates."""
    with satellite_or_skip(rendered_image(sleep_mode="hibernate")) as running:
        yield running


@pytest.fixture(scope="module")
def enrolled_satellite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestSatellite]:
    """BuildKit and the responder have certificates of the daemon's authority, and serve the daemon alone."""
    with satellite_or_skip(*enrolled(rendered_image(VOLUME + ISSUED), tmp_path_factory.mktemp("tls"))) as running:
        yield running


@pytest.fixture
def idle(satellite: GuestSatellite) -> Answers:
    """How the responder answers when nothing else runs. Measured anew each time, since the host's load changes."""
    with satellite.asked() as answers:
        time.sleep(IDLE_S)
    assert answers[0].failed == ()
    return answers[0]


@pytest.fixture
def computing(satellite: GuestSatellite) -> Answers:
    """How it answers while each core computes, outside the builds.

    QEMU then waits for the host's cores as it does in a storm. What is slower than this is the storm's doing.
    """
    with satellite.asked() as answers:
        satellite.guest.run(COMPUTE, str(IDLE_S))
    assert answers[0].failed == ()
    return answers[0]
