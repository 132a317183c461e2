"""Control plane and data plane in their units, on a host that goes over and back as docs/two-processes.md says.

The tests of a suite are one story on one host, in their order.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beds.booted.package import next_version
from beds.booted.story import DEADLINE_S, DPKG, INSTALL_DEADLINE_S, Story, begun, ended
from beds.booted.two_processes import GO_BACK, GO_OVER, KEEPER, PLANE_A, PLANE_B, follow
from bentpipe.daemon.service.host_rows import DataPlaneRow, HostLook

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

BUILD_S = 30.0
"""Longer than a restart and a start take."""
WATCHED_S = 60.0
"""Longer than the watchdog's 30 s and a start."""
UPGRADE_S = (60.0, 240.0)


def upgrade(story: Story, package: Path) -> str:
    """Install a package while a build runs, which must not notice. Returns what dpkg and the package said.

    How long that takes is the machine's load: it is done again, with a longer build, until a build has outlasted it.
    """
    story.host.put("/root/next.deb", package.read_bytes())
    for seconds in UPGRADE_S:
        said = story.host.run(f"{DPKG} --unpack /root/next.deb 2>&1", deadline_s=INSTALL_DEADLINE_S)
        running = begun(story.build(seconds))
        said += story.host.run("dpkg --configure bentpipe 2>&1", deadline_s=INSTALL_DEADLINE_S)
        has_outlasted = running.poll() is None
        assert ended(story.build(0)) == "awake"
        assert ended(running) == "awake"
        story.host.run("systemctl --quiet is-active bentpipe.target bentpipe.service bentpipe-dataplane.socket")
        if has_outlasted:
            return said
    pytest.fail(f"an upgrade takes longer than {UPGRADE_S[-1]} s")


def test_check_and_the_units_agree(over: Story) -> None:
    host = over.host
    assert "data_plane" not in host.run("bentpipe check 2>&1")
    verified = host.run(f"systemd-analyze verify --man=no bentpipe.service {PLANE_A} bentpipe.target 2>&1")
    assert "bentpipe" not in verified


def admissions(story: Story) -> HostLook:
    """What `bentpipe top` says of the host."""
    told = json.loads(story.host.run("bentpipe top --once --json --org acme"))["host"]
    planes = tuple(DataPlaneRow(**each) for each in told.pop("data_planes"))
    return HostLook(data_planes=planes, **told)


def wait_admissions(story: Story, are_so: Callable[[HostLook], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not are_so(seen := admissions(story)):
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)


def test_an_awake_satellite_is_reached_without_the_control_plane(over: Story) -> None:
    """It is a process of this host: the data plane looks by netlink whether that listens, as its unit lets it do."""
    host = over.host
    running = begun(over.build(BUILD_S))
    wait_admissions(over, lambda seen: seen.by_snapshots and seen.gates == 1)
    before = admissions(over).admitted
    assert ended(over.build(0)) == "awake"
    wait_admissions(over, lambda seen: seen.admitted == before + 1)
    host.run("systemctl stop bentpipe.service", deadline_s=DEADLINE_S)
    assert ended(over.build(0)) == "awake"
    assert over.show("ActiveState") == "inactive"
    host.run("systemctl start bentpipe.service", deadline_s=DEADLINE_S)
    assert ended(running) == "awake"
    assert "no sock_diag" not in host.journal(PLANE_A)


def test_restarts_of_both_cut_no_build(over: Story) -> None:
    """A build goes on while the control plane restarts and the data plane is replaced; the satellite is the same process."""
    host = over.host
    satellite = host.run("pgrep --full [t]estbed.satellite")
    running = begun(over.build(BUILD_S))
    before = over.show("MainPID")
    host.run("systemctl restart bentpipe.service", deadline_s=DEADLINE_S)
    assert over.show("MainPID") not in {before, "0"}
    host.run(f"systemctl start {PLANE_B}", deadline_s=DEADLINE_S)
    assert ended(over.build(0)) == "awake"
    assert ended(running) == "awake"
    host.run("while systemctl --quiet is-active $1; do sleep 0.2; done", PLANE_A, deadline_s=DEADLINE_S)
    assert host.run("pgrep --full [t]estbed.satellite") == satellite


def test_a_killed_control_plane_cuts_no_build_and_starts_no_other_data_plane(over: Story) -> None:
    host = over.host
    running = begun(over.build(BUILD_S))
    host.run("systemctl kill --signal=KILL --kill-whom=main bentpipe.service")
    assert ended(over.build(0)) == "awake"
    assert ended(running) == "awake"
    assert over.show("ActiveState", PLANE_A) == "inactive"


def test_a_data_plane_that_crashes_is_started_again(over: Story) -> None:
    """What it had ends with it, and nothing else: the same satellite, control plane and port serve the next client."""
    host = over.host
    control, satellite = over.show("MainPID"), host.run("pgrep --full [t]estbed.satellite")
    plane = PLANE_A if over.show("ActiveState", PLANE_A) == "active" else PLANE_B
    before = over.show("MainPID", plane)
    running = begun(over.build(BUILD_S))
    host.run("systemctl kill --signal=SEGV --kill-whom=main $1", plane)
    assert "UNAVAILABLE" in ended(running)
    assert ended(over.build(0)) == "awake"
    assert over.show("MainPID", plane) not in {before, "0"}
    assert over.show("MainPID") == control
    assert host.run("pgrep --full [t]estbed.satellite") == satellite


def test_the_watchdog_ends_a_control_plane_that_is_stuck(over: Story) -> None:
    """The build that runs does not notice, and a client that comes meanwhile waits."""
    host, before = over.host, over.show("MainPID")
    running = begun(over.build(WATCHED_S))
    host.run("systemctl kill --signal=STOP --kill-whom=main bentpipe.service")
    over.wait_other_process(before)
    assert ended(over.build(0)) == "awake"
    assert ended(running) == "awake"
    assert "watchdog" in host.run("journalctl --no-pager --unit=bentpipe.service").lower()


def test_the_watchdog_ends_a_data_plane_that_is_stuck(over: Story) -> None:
    host, control = over.host, over.show("MainPID")
    plane = PLANE_A if over.show("ActiveState", PLANE_A) == "active" else PLANE_B
    before = over.show("MainPID", plane)
    host.run("systemctl kill --signal=STOP --kill-whom=main $1", plane)
    over.wait_other_process(before, plane)
    assert ended(over.build(0)) == "awake"
    assert over.show("MainPID") == control
    assert "watchdog" in host.run("journalctl --no-pager --unit=$1", plane).lower()


def test_an_upgrade_restarts_the_control_plane_alone(over: Story, tmp_path: Path) -> None:
    """The data plane and the keeper are the same processes after it, and the package says what is left to do.

    The keeper becomes the program that was installed: its satellite is the same process, and the build on it goes on.
    """
    control, plane, keeper = over.show("MainPID"), over.show("MainPID", PLANE_B), over.show("MainPID", KEEPER)
    program, satellite = over.program_of(KEEPER), over.host.run("pgrep --full [t]estbed.satellite")
    said = upgrade(over, next_version(over.package, tmp_path, "daemon/keeper/program.py"))
    over.wait_other_program(KEEPER, program)
    assert over.host.run("pgrep --full [t]estbed.satellite") == satellite
    assert "systemctl start bentpipe-dataplane@a" in said
    assert over.show("MainPID") not in {control, "0"}
    assert over.show("MainPID", PLANE_B) == plane
    assert over.show("MainPID", KEEPER) == keeper
    over.host.run(f"systemctl start {PLANE_A}", deadline_s=DEADLINE_S)
    assert ended(over.build(0)) == "awake"


def test_a_data_plane_whose_files_are_gone_works_on(over: Story) -> None:
    """After an upgrade it is still the old version, whose modules dpkg has replaced."""
    host = over.host
    host.run("chmod 0 /usr/lib/bentpipe/lib")  # for root it is still there
    try:
        assert ended(over.build(0)) == "awake"
        host.run("systemctl kill --signal=USR1 --kill-whom=main bentpipe.service")
        assert ended(begun(over.build(1))) == "awake"
    finally:
        host.run("chmod 755 /usr/lib/bentpipe/lib")
    assert "Traceback" not in host.journal("bentpipe.service") + host.journal(PLANE_A)


def test_a_library_update_restarts_neither(over: Story) -> None:
    host = over.host
    running = begun(over.build(BUILD_S / 2))
    before = [over.show("MainPID", unit) for unit in ("bentpipe.service", PLANE_A, KEEPER)]
    host.run("library=$(ls /usr/lib/*/libssl.so.3); cp $library $library.new; mv $library.new $library")
    said = host.run("needrestart -r a -l -v 2>&1 || true", deadline_s=DEADLINE_S)
    assert PLANE_A in said
    assert [over.show("MainPID", unit) for unit in ("bentpipe.service", PLANE_A, KEEPER)] == before
    assert ended(running) == "awake"


def test_the_way_back_keeps_the_store(over: Story) -> None:
    host = over.host
    host.run("bentpipe token add --name kept --grant 'acme/*'")
    follow(over, GO_BACK)
    assert ended(over.build(0)) == "awake"
    assert "kept" in host.run("bentpipe token list")
    assert over.show("FragmentPath") == "/etc/systemd/system/bentpipe.service"
    assert over.show("ActiveState", PLANE_A) == "inactive"
    assert "data_plane" not in host.run("bentpipe check 2>&1")


def test_a_purge_in_this_form_leaves_nothing(over: Story) -> None:
    host = over.host
    follow(over, GO_OVER)
    assert ended(over.build(0)) == "awake"
    host.run("dpkg -P bentpipe 2>&1", deadline_s=INSTALL_DEADLINE_S)
    host.run("systemctl daemon-reload; test -e /etc/bentpipe/tls.key")
    assert host.run("find /etc/systemd /run/systemd/system /usr/lib/systemd -name 'bentpipe*'") == ""
    assert host.run("systemctl list-units --all --plain --no-legend 'bentpipe*'") == ""
    for path in (
        "/var/lib/bentpipe",
        "/var/lib/private/bentpipe",
        "/var/lib/bentpipe-satellites",
        "/run/bentpipe-planes",
    ):
        assert host.attempt("test -e $1", path)[0] != 0, path
    assert host.attempt("pgrep --full [/]usr/lib/bentpipe")[0] != 0
