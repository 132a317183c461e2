"""The keeper under its unit: it becomes the installed program, refuses a broken one, and starts and ends satellites.

The tests of a suite are one story on one host, in their order. `test_two_processes` has the upgrade of the package.
"""

import pytest

from beds.booted.package import next_version
from beds.booted.story import DEADLINE_S, DPKG, INSTALL_DEADLINE_S, Story, begun, ended
from beds.booted.two_processes import KEEPER

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

BUILD_S = 20.0
SATELLITES = "pgrep --full [t]estbed.satellite"
LAST_UID, FIRST_UID = 300999, 300000
"""Of the unit."""
ADDED = """
[[satellite]]
org = "acme"
name = "second"
[satellite.process]
command = ["/usr/lib/bentpipe/bin/python3", "-I", "-m", "bentpipe.daemon.testbed.satellite", "{port}", "--boot=0.25"]
"""


@pytest.fixture(scope="module")
def kept(story: Story) -> Story:
    """The host with a satellite that the keeper has started."""
    assert ended(story.build(0)) == "awake"
    return story


def renew(story: Story) -> None:
    """Have the keeper become the installed program, in the same process."""
    pid, program = story.show("MainPID", KEEPER), story.program_of(KEEPER)
    story.host.run(f"systemctl reload {KEEPER}")
    story.wait_other_program(KEEPER, program)
    assert story.show("MainPID", KEEPER) == pid


def test_a_build_goes_on_while_the_keeper_becomes_the_installed_program(kept: Story) -> None:
    host = kept.host
    satellite, rights = host.run(SATELLITES), host.run("grep Cap /proc/$1/status", kept.show("MainPID", KEEPER))
    running = begun(kept.build(BUILD_S))
    for _ in range(3):
        renew(kept)
        assert ended(kept.build(0)) == "awake"
    assert ended(running) == "awake"
    assert host.run(SATELLITES) == satellite
    assert host.run("grep Cap /proc/$1/status", kept.show("MainPID", KEEPER)) == rights


def test_the_next_program_has_the_rights_and_the_cgroups_of_the_first(kept: Story) -> None:
    """It starts a satellite as a user of its own, freezes and thaws it, is told of its end, and starts it again."""
    host = kept.host
    host.put("/etc/bentpipe/bentpipe.d/10-second.toml", ADDED.encode())
    host.run("systemctl reload bentpipe.service")
    assert ended(kept.build(0, "acme/second")) == "awake"
    second = host.run("pgrep --full [t]estbed.satellite.*boot=0.25").strip()
    assert FIRST_UID <= int(host.run("stat -c %u /proc/$1", second)) <= LAST_UID
    assert f"/{KEEPER}/" in host.run("cat /proc/$1/cgroup", second)
    host.run("bentpipe sat sleep second --org acme", deadline_s=DEADLINE_S)
    renew(kept)
    assert ended(kept.build(0, "acme/second")) == "awake"
    host.run("kill -KILL $1; while kill -0 $1 2>/dev/null; do sleep 0.1; done", second)
    assert ended(kept.build(0, "acme/second")) == "awake"
    assert host.run("pgrep --full [t]estbed.satellite.*boot=0.25").strip() not in {second, ""}


def test_a_satellite_cannot_write_into_cgroups(kept: Story) -> None:
    satellite = kept.host.run(SATELLITES).split()[0]
    write = (
        "nsenter --target $1 --mount setpriv --reuid=$2 --regid=$2 --clear-groups "
        'sh -c "echo 0 >/sys/fs/cgroup$3/cgroup.procs"'
    )
    uid = kept.host.run("stat -c %u /proc/$1", satellite).strip()
    for group in ("", "/system.slice", f"/system.slice/{KEEPER}"):
        assert kept.host.attempt(write, satellite, uid, group)[0] != 0


def test_an_upgrade_of_the_package_renews_the_keeper_and_keeps_the_satellite(kept: Story) -> None:
    """The daemon of the newer package asks for it. With one process a build may last until drain_deadline."""
    host = kept.host
    satellites, pid, program = host.run(SATELLITES), kept.show("MainPID", KEEPER), kept.program_of(KEEPER)
    daemon = kept.show("MainPID")
    host.put("/root/next.deb", next_version(kept.package, kept.folder, "daemon/keeper/program.py").read_bytes())
    host.run(f"{DPKG} --unpack /root/next.deb 2>&1", deadline_s=INSTALL_DEADLINE_S)
    running = begun(kept.build(BUILD_S))
    host.run("dpkg --configure bentpipe 2>&1", deadline_s=INSTALL_DEADLINE_S)
    assert ended(running) == "awake"
    assert kept.show("MainPID") not in {daemon, "0"}
    kept.wait_other_program(KEEPER, program)
    assert kept.show("MainPID", KEEPER) == pid
    assert host.run(SATELLITES) == satellites
    assert ended(kept.build(0)) == "awake"


def test_a_broken_program_is_refused_in_words(kept: Story) -> None:
    host = kept.host
    satellites, program = host.run(SATELLITES), kept.program_of(KEEPER)
    (module,) = host.run("ls /usr/lib/bentpipe/lib/python3*/site-packages/bentpipe/daemon/keeper/state.py").split()
    host.run("cp $1 /root/state.py; echo 'broken(' >>$1", module)
    try:
        host.run(f"systemctl reload {KEEPER}")
        told = f"until journalctl --no-pager --unit={KEEPER} | grep --quiet 'not renewed'; do sleep 0.2; done"
        host.run(told, deadline_s=DEADLINE_S)
        assert "SyntaxError" in host.run(f"journalctl --no-pager --unit={KEEPER}")
        assert kept.program_of(KEEPER) == program
        assert ended(kept.build(0)) == "awake"
    finally:
        host.run("cp /root/state.py $1", module)
    assert host.run(SATELLITES) == satellites
    renew(kept)


def test_a_keeper_that_is_killed_takes_its_satellites_with_it_and_comes_back(kept: Story) -> None:
    host, before, daemon = kept.host, kept.show("MainPID", KEEPER), kept.show("MainPID")
    satellites = host.run(SATELLITES).split()
    host.run(f"systemctl kill --signal=KILL --kill-whom=main {KEEPER}")
    kept.wait_other_process(before, KEEPER)
    for each in satellites:
        host.run("while kill -0 $1 2>/dev/null; do sleep 0.1; done", each)
    assert ended(kept.build(0)) == "awake"
    assert kept.show("MainPID") == daemon


def test_a_stop_ends_every_satellite(kept: Story) -> None:
    host = kept.host
    host.run(f"systemctl stop {KEEPER}", deadline_s=DEADLINE_S)
    assert host.attempt(SATELLITES)[0] != 0
    assert kept.show("Result", KEEPER) == "success"
    host.run(f"systemctl start {KEEPER}", deadline_s=DEADLINE_S)
    assert ended(kept.build(0)) == "awake"
