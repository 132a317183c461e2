"""A resume is warmer than a boot: a satellite is booted, woken from a snapshot of its memory, and hibernates by itself.

The phases are printed. Emulation makes all of them longer, the kernel's and BuildKit's most.
"""

import dataclasses
import time
from collections.abc import Callable

import pytest

from beds.guest.cloud_init import boot_spans
from beds.guest.image import SWAP_DEVICE
from beds.guest.satellite import GuestSatellite, Life

pytestmark = pytest.mark.slow

MAKE_SWAP = "mkswap -q $1; swapon $1"
"""What EC2's agent does on a machine that shall hibernate (aws/amazon-ec2-hibinit-agent)."""
HIBERNATE = "sync; systemctl start --no-block hibernate.target"
"""What `systemctl hibernate` asks of systemd; the guest has no logind, which would be asked first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cold:
    """A boot of the satellite: how long it took until its first build was done, and what was running then."""

    took_s: float
    boot_id: str
    life: Life
    words: str


def first_solve_s(satellite: GuestSatellite) -> float:
    begun = time.monotonic()
    built = satellite.small_build()
    assert built.code == 0, built.progress[-3000:]
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def cold(hibernating_satellite: GuestSatellite) -> Cold:
    satellite, guest = hibernating_satellite, hibernating_satellite.guest
    first_solve_s(satellite)
    guest.run("sync")
    guest.power_off()
    begun = time.monotonic()
    guest.boot()
    satellite.await_ready()
    solve_s = first_solve_s(satellite)
    took_s = time.monotonic() - begun
    phases = ", ".join(f"{name} {span}" for name, span in boot_spans(guest).items())
    words = f"boot to the first solve {took_s:.1f} s ({phases}, first solve {solve_s:.1f} s)"
    return Cold(took_s, guest.boot_id(), satellite.life(), words)


def check_warmer(satellite: GuestSatellite, cold: Cold, wake: Callable[[], float], name: str) -> str:
    """Wake it, and build. Returns words about how long that took; raises AssertionError if anything was started anew."""
    begun = time.monotonic()
    woken_s = wake()
    solve_s = first_solve_s(satellite)
    warm_s = time.monotonic() - begun
    assert satellite.guest.boot_id() == cold.boot_id
    assert satellite.life() == cold.life
    assert warm_s < cold.took_s
    told = f"{name}: wake to the first solve {warm_s:.1f} s (resume {woken_s:.1f} s, first solve {solve_s:.1f} s)"
    return f"\n{cold.words}\n{told}, factor {cold.took_s / warm_s:.1f}"


def test_a_snapshot_is_warmer_than_a_boot(
    hibernating_satellite: GuestSatellite, cold: Cold, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = hibernating_satellite.guest
    slept = guest.sleep()
    words = check_warmer(hibernating_satellite, cold, guest.wake, "snapshot of its memory")
    with capsys.disabled():
        print(f"{words}; sleep {slept.took_s:.1f} s, {slept.state_bytes >> 20} MiB")


def test_a_machine_that_hibernates_by_itself_is_warmer(
    hibernating_satellite: GuestSatellite, cold: Cold, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes its memory into its swap and switches itself off, as on EC2. The next boot's kernel finds it there."""
    guest = hibernating_satellite.guest
    guest.run(MAKE_SWAP, SWAP_DEVICE)
    assert " FAIL" not in guest.run("bentpipe-doctor")
    begun = time.monotonic()
    guest.run(HIBERNATE)
    guest.await_end()
    slept_s = time.monotonic() - begun
    words = check_warmer(hibernating_satellite, cold, guest.boot, "hibernated by itself")
    with capsys.disabled():
        print(f"{words}; sleep {slept_s:.1f} s")
    assert "exec cat" in guest.run("journalctl --boot --output=cat | grep Started"), "our hook reads the pages again"
