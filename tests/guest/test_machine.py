"""The guest in which satellites are tested: it has what a satellite's machine has, and it sleeps and wakes."""

from collections.abc import Iterator

import pytest

from beds.guest.image import guest_image
from beds.guest.machine import Guest, GuestError
from beds.peers.builds import Missing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    try:
        running = Guest(guest_image())
    except Missing as exc:
        pytest.skip(str(exc))
    with running:
        yield running


def test_it_has_cgroup_v2_and_pressure(guest: Guest) -> None:
    controllers = guest.run("cat /sys/fs/cgroup/cgroup.controllers").split()
    assert {"cpu", "memory", "io", "pids"} <= set(controllers)
    assert "full" in guest.run("cat /sys/fs/cgroup/system.slice/memory.pressure")
    assert guest.run("nproc").strip() == "2"


def test_a_failed_command_is_told_with_its_output(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"(?s)ended with 3.*words"):
        guest.run("echo words; exit 3")
    with pytest.raises(GuestError, match="did not end"):
        guest.run("sleep 60", deadline_s=1)


def test_a_process_goes_on_after_sleep(guest: Guest) -> None:
    """As after a hibernation: the same boot, the same process, and what it wrote to its disk."""
    guest.run("nohup sleep 1000 >/dev/null 2>&1 & echo $! >/var/pid")
    before = guest.boot_id()
    slept = guest.sleep()
    assert slept.state_bytes > 1 << 20
    guest.wake()
    assert guest.boot_id() == before
    assert guest.run("cat /proc/$(cat /var/pid)/comm").strip() == "sleep"
