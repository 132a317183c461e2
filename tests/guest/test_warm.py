"""A resume is warmer than a boot: the same satellite is switched off and booted, and put to sleep and woken.

The phases are printed. Emulation makes all of them longer, the kernel's and BuildKit's most.
"""

import time

import pytest

from beds.guest.satellite import GuestSatellite
from bentpipe.daemon.image.programs.settings import BUILDKIT_UNIT


def phases_s(satellite: GuestSatellite) -> dict[str, float]:
    """What the boot consisted of, in seconds, by systemd's clock."""
    manager = "systemctl show -P UserspaceTimestampMonotonic"
    unit = f"systemctl show -P ExecMainStartTimestampMonotonic -P ActiveEnterTimestampMonotonic {BUILDKIT_UNIT}"
    [kernel, started, listening] = [int(each) / 1e6 for each in satellite.guest.run(f"{manager}; {unit}").split()]
    return {
        "kernel": kernel,
        "until BuildKit's start": started - kernel,
        "until BuildKit listens": listening - started,
    }


def first_solve_s(satellite: GuestSatellite) -> float:
    begun = time.monotonic()
    built = satellite.small_build()
    assert built.code == 0, built.progress[-3000:]
    return time.monotonic() - begun


@pytest.mark.slow
def test_a_resume_is_warmer_than_a_boot(satellite: GuestSatellite, capsys: pytest.CaptureFixture[str]) -> None:
    first_solve_s(satellite)
    guest = satellite.guest
    guest.run("sync")
    guest.power_off()

    begun = time.monotonic()
    guest.boot()
    satellite.await_ready()
    phases = phases_s(satellite) | {"first solve": first_solve_s(satellite)}
    cold_s = time.monotonic() - begun
    boot_id, life = guest.boot_id(), satellite.life()

    slept = guest.sleep()
    begun = time.monotonic()
    resumed_s = guest.wake()
    solve_s = first_solve_s(satellite)
    warm_s = time.monotonic() - begun
    assert guest.boot_id() == boot_id
    assert satellite.life() == life
    with capsys.disabled():
        told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items())
        print(f"\nboot to the first solve {cold_s:.1f} s ({told})")
        print(f"wake to the first solve {warm_s:.1f} s (resume {resumed_s:.1f} s, first solve {solve_s:.1f} s)")
        print(f"factor {cold_s / warm_s:.1f}; sleep {slept.took_s:.1f} s, {slept.state_bytes >> 20} MiB")
    assert warm_s < cold_s
