"""Control plane and data plane in their units, on a host that goes over and back as docs/data-plane.md says.

The tests of a suite are one story on one host, in their order.
"""

from pathlib import Path

import pytest

from beds.booted.package import next_version
from beds.booted.story import DEADLINE_S, DPKG, INSTALL_DEADLINE_S, Story, begun, ended
from beds.pages.list import installed_blocks

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

BUILD_S = 30.0
"""Longer than a restart and a start take."""
UPGRADE_S = (60.0, 240.0)
PLANE_A, PLANE_B = "bentpipe-dataplane@a.service", "bentpipe-dataplane@b.service"
KEEPER = "bentpipe-keeper.service"
GO_OVER, GO_BACK = "Go over to two processes", "Go back to one process"
"""Sections of the page."""


def follow(story: Story, section: str) -> None:
    """Run the commands of a section."""
    blocks = [each for each in installed_blocks("data-plane.md") if each.section == section]
    assert blocks, section
    for each in blocks:
        story.host.run(each.text, deadline_s=DEADLINE_S)


@pytest.fixture(scope="module")
def over(story: Story) -> Story:
    """The host after it has gone over."""
    assert ended(story.build(0)) == "awake"
    follow(story, GO_OVER)
    assert ended(story.build(0)) == "awake"
    return story


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


def test_an_upgrade_restarts_the_control_plane_alone(over: Story, tmp_path: Path) -> None:
    """The data plane and the keeper are the same processes after it, and the package says what is left to do."""
    control, plane, keeper = over.show("MainPID"), over.show("MainPID", PLANE_B), over.show("MainPID", KEEPER)
    said = upgrade(over, next_version(over.package, tmp_path))
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
    assert over.show("FragmentPath").endswith("/lib/systemd/system/bentpipe.service")
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
