"""The first boots of a satellite as its user data make it, and what `bentpipe-doctor` says of a machine by its kernel.

cloud-init is Debian's own. The tests hold a stage of it up, so that what waits for that stage cannot come.
"""

import time
from collections.abc import Iterator

import pytest

from beds.guest.cloud_init import FIRST_STAGE, LAST_STAGE, Span, boot_spans, go_on, hold_up, is_held_up, seed
from beds.guest.image import guest_image
from beds.guest.machine import Guest, GuestError
from beds.guest.satellite import BUILDKIT_PORT, RESPONDER_PORT, START_DEADLINE_S, GuestSatellite, rendered_image
from beds.peers.builds import Missing
from bentpipe.daemon.image.programs.settings import BUILDKIT_UNIT, BUILDS_CGROUP

pytestmark = pytest.mark.slow

DOCTOR_DEADLINE_S = 90.0
PHASES_DEADLINE_S = 60.0
"""The responder looks every few seconds until it knows all phases."""
NEAR_S = 15.0
"""Between an event and the responder's look at it, in a machine that is emulated."""
POLL_S = 0.5
SEEN_BUILD = ("burn", "5", "/", "1")
"""It is long enough for the responder, which looks once a second, to see that it runs."""
PHASES = ("init_ms", "cloud_init_ms", "buildkit_ms", "first_build_ms")


def await_ready(guest: Guest) -> None:
    GuestSatellite(guest, guest_image()).await_ready()


def reboot(guest: Guest) -> None:
    guest.run("sync")
    guest.power_off()
    guest.boot()


def told(guest: Guest, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Span]:
    """Print what the boot consisted of."""
    spans = boot_spans(guest)
    with capsys.disabled():
        print(f"\n{name}: {', '.join(f'{each} {span}' for each, span in spans.items())}")
    return spans


def await_phases(satellite: GuestSatellite, spans: dict[str, Span]) -> None:
    """Return when the responder tells all phases, and they are these. Raises AssertionError."""
    deadline = time.monotonic() + PHASES_DEADLINE_S
    while not all((boot := satellite.status().boot).HasField(each) for each in PHASES):
        assert time.monotonic() < deadline, boot
        time.sleep(POLL_S)
    assert boot.init_ms / 1e3 == pytest.approx(spans["kernel"].ended_s, abs=1.0)
    listening_s = spans["BuildKit"].ended_s
    assert listening_s - 1.0 <= boot.buildkit_ms / 1e3 <= listening_s + NEAR_S
    final = spans[LAST_STAGE.removesuffix(".service")]
    assert final.begun_s - 1.0 <= boot.cloud_init_ms / 1e3 <= final.ended_s + 1.0
    assert boot.first_build_ms > boot.buildkit_ms


def doctor(guest: Guest) -> tuple[int, str]:
    """(exit code, output)."""
    said = guest.run("bentpipe-doctor && echo code 0 || echo code $?", deadline_s=DOCTOR_DEADLINE_S)
    lines, _, code = said.rstrip().rpartition("\ncode ")
    return int(code), lines


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """At its first boot, of which cloud-init's last stage is held up."""
    try:
        running = Guest(guest_image(), [BUILDKIT_PORT, RESPONDER_PORT])
    except Missing as exc:
        pytest.skip(str(exc))
    with running:
        seed(running, rendered_image())
        hold_up(running, LAST_STAGE)
        reboot(running)
        await_ready(running)
        yield running


def test_the_first_build_waits_for_no_last_stage(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """It builds while the last stage is held up. What the responder tells of the boot is what systemd and cloud-init say."""
    satellite = GuestSatellite(guest, guest_image())
    built = satellite.build(*SEEN_BUILD)
    assert built.code == 0, built.progress[-3000:]
    assert is_held_up(guest, LAST_STAGE)
    go_on(guest)
    spans = told(guest, "first boot", capsys)
    await_phases(satellite, spans)


def test_the_doctor_finds_no_fault(guest: Guest) -> None:
    code, said = doctor(guest)
    assert "FAIL" not in said, said
    assert code == 0
    for words in ("daemon, beside the steps'", "closed to builds", "of the same version as the settings"):
        assert words in said


def test_a_buildkit_that_was_killed_comes_back_within_its_limits(guest: Guest) -> None:
    before = guest.run("systemctl show -P MainPID $1", BUILDKIT_UNIT)
    guest.run("kill -KILL $(systemctl show -P MainPID $1); sleep 2", BUILDKIT_UNIT)
    await_ready(guest)
    assert guest.run("systemctl show -P MainPID $1", BUILDKIT_UNIT) != before
    code, said = doctor(guest)
    assert code == 0, said


def test_a_limit_that_somebody_has_lifted_is_told(guest: Guest) -> None:
    guest.run("echo max >/sys/fs/cgroup/$1/pids.max", BUILDS_CGROUP)
    code, said = doctor(guest)
    assert code == 1
    # On a starved host BuildKit may be late to say its policies, which is another fault.
    [fault] = [line for line in said.splitlines() if line.startswith("FAIL") and "builds' processes" in line]
    guest.run("systemctl restart $1", fault.rpartition("systemctl restart ")[2], deadline_s=START_DEADLINE_S)
    assert doctor(guest)[0] == 0, "the remedy is right"


def test_without_limits_buildkit_does_not_start(guest: Guest) -> None:
    guest.run("mv /etc/bentpipe/satellite.json /etc/bentpipe/gone; systemctl daemon-reload")
    try:
        with pytest.raises(GuestError, match="ssert"):
            guest.run("systemctl restart $1 || { journalctl -u $1 -n 5 -o cat; exit 1; }", BUILDKIT_UNIT)
    finally:
        guest.run("mv /etc/bentpipe/gone /etc/bentpipe/satellite.json; systemctl daemon-reload")
    guest.run("systemctl restart $1", BUILDKIT_UNIT, deadline_s=START_DEADLINE_S)
    assert doctor(guest)[0] == 0


def test_a_later_boot_waits_for_nothing_of_cloud_init(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """It builds while even the first stage is held up, and with it the network stage and sysinit.target."""
    before = guest.boot_id()
    hold_up(guest, FIRST_STAGE)
    reboot(guest)
    assert guest.boot_id() != before
    await_ready(guest)
    satellite = GuestSatellite(guest, guest_image())
    built = satellite.build(*SEEN_BUILD)
    assert built.code == 0, built.progress[-3000:]
    assert is_held_up(guest, FIRST_STAGE)
    assert doctor(guest)[0] == 0
    go_on(guest)
    await_phases(satellite, told(guest, "second boot", capsys))
