"""The Debian package from installation to purge, in clean Debian roots with their own systemd, and with builds that run.

The tests of a suite are one story on one host, in their order.
"""

import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from beds.booted.machine import Booted, BootedError
from beds.booted.package import built_package, next_version
from beds.booted.root import SUITES, booted_root
from beds.booted.story import DEADLINE_S, INSTALL_DEADLINE_S, Story, begun, ended
from beds.peers.builds import Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

SOCKET = "bentpipe-dataplane.socket"
UNITS = (
    f"bentpipe.target {SOCKET} bentpipe-dataplane@a.service bentpipe.service bentpipe.socket bentpipe-keeper.service"
)
BUILD_S = 15.0
"""Longer than a restart takes, shorter than the drain deadline of the configuration."""
CLIENT_EACH_S = 3.0
"""So often a client connects during an upgrade."""


@pytest.fixture(scope="module", params=SUITES)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    try:
        root, package = booted_root(request.param), built_package(request.param)
    except Missing as exc:
        pytest.skip(str(exc))
    with Booted(root) as host:
        yield Story(host, package, tmp_path_factory.mktemp("story"))


def test_it_is_installed_and_nothing_runs(story: Story) -> None:
    story.install(story.package)
    host = story.host
    assert re.fullmatch(r"bentpipe, version \d.*\n", host.run("bentpipe --version"))
    for unit in ("bentpipe.socket", "bentpipe-dataplane.socket", "bentpipe.target"):
        assert host.attempt("systemctl is-enabled $1", unit)[1].strip() == "disabled"
        assert story.show("ActiveState", unit) == "inactive"
    assert story.show("ActiveState") == "inactive"
    assert host.run("stat -c '%a %U %G' /etc/bentpipe").strip() == "750 root bentpipe"
    assert host.run("id -un bentpipe").strip() == "bentpipe"
    assert host.run("systemctl --failed --no-legend --plain") == ""
    files = host.run("dpkg -L bentpipe").splitlines()
    for path in (
        "/usr/share/man/man1/bentpipe.1.gz",
        "/usr/share/man/man5/bentpipe.toml.5.gz",
        "/usr/share/bash-completion/completions/bentpipe",
        "/usr/share/bentpipe/iam-policy.json",
        "/usr/share/bentpipe/sample.toml",
        "/etc/needrestart/conf.d/bentpipe.conf",
    ):
        assert path in files


def test_its_units_are_what_systemd_accepts(story: Story) -> None:
    host = story.host
    said = host.run("systemd-analyze verify --man=no $1 2>&1", UNITS)
    assert "bentpipe" not in said


def test_bash_completes_commands(story: Story) -> None:
    words = story.host.run(
        "bash -euc '. /usr/share/bash-completion/completions/bentpipe; COMP_WORDS=(bentpipe sat ls); COMP_CWORD=2; "
        "_bentpipe_completion bentpipe; echo ${COMPREPLY[@]}'"
    ).split()
    assert words == ["ls"]


def test_it_serves_after_the_steps_of_its_readme(story: Story) -> None:
    story.configure()
    host = story.host
    host.run("bentpipe check --config /etc/bentpipe/bentpipe.toml")
    story.start()
    assert ended(story.build(0)) == "awake"
    assert host.run("stat -L -c %U /var/lib/bentpipe/ledger.sqlite").strip() == "bentpipe"
    assert "awake" in host.run("bentpipe report --config /etc/bentpipe/bentpipe.toml --since 1h")


def test_the_store_is_backed_up_beside_the_service_and_restored_without_it(story: Story) -> None:
    host = story.host
    host.run("bentpipe store backup /root/copy; bentpipe store verify; bentpipe store verify /root/copy")
    code, said = host.attempt("bentpipe store restore /root/copy")
    assert (code, "stop it first" in said) == (2, True), said
    host.run(f"systemctl stop {story.units}", deadline_s=DEADLINE_S)
    host.run("bentpipe store restore /root/copy")
    host.run(f"systemctl start {story.units}", deadline_s=DEADLINE_S)
    assert ended(story.build(0)) == "awake"
    owners = host.run("stat -L -c %U /var/lib/bentpipe/ledger.sqlite*").split()
    assert set(owners) == {"bentpipe"}
    assert "awake" in host.run("bentpipe report --since 1h")


def test_an_upgrade_cuts_no_build_and_refuses_no_client(story: Story) -> None:
    """A build that runs ends by itself. Clients that connect meanwhile wait, and are served by the new version."""
    before = story.show("MainPID")
    socket_since = story.show("ActiveEnterTimestampMonotonic", SOCKET)
    running = begun(story.build(BUILD_S))
    host = story.host
    host.put("/root/next.deb", next_version(story.package, story.folder).read_bytes())
    upgrade = subprocess.Popen(
        [*host.command, "sh", "-c", "dpkg -i /root/next.deb 2>&1"], stdout=subprocess.PIPE, text=True
    )
    waiting = []
    while upgrade.poll() is None:
        waiting.append(story.build(0))
        time.sleep(CLIENT_EACH_S)
    said, _ = upgrade.communicate()
    assert upgrade.returncode == 0, said
    assert ended(running) == "awake"
    assert {ended(each) for each in waiting} == {"awake"}
    assert story.show("MainPID") not in {before, "0"}
    assert story.show("ActiveEnterTimestampMonotonic", SOCKET) == socket_since


def test_an_upgrade_leaves_the_daemon_alone_if_it_refuses_the_file(story: Story) -> None:
    host = story.host
    before = story.show("MainPID")
    host.run("cp /etc/bentpipe/bentpipe.toml /root/good.toml; echo mistake = 1 >>/etc/bentpipe/bentpipe.toml")
    said = story.install(story.package)
    assert "mistake" in said
    assert "the old version runs on" in said
    assert story.show("MainPID") == before
    assert ended(story.build(0)) == "awake"
    host.run("cp /root/good.toml /etc/bentpipe/bentpipe.toml")
    host.run("echo RESTART_ON_UPGRADE=no >/etc/default/bentpipe")
    story.install(next_version(story.package, story.folder))
    assert story.show("MainPID") == before
    host.run("dpkg -L bentpipe >/dev/null; echo RESTART_ON_UPGRADE=yes >/etc/default/bentpipe")


def test_a_daemon_whose_files_are_gone_works_on(story: Story) -> None:
    """Between unpacking and restart, dpkg has replaced every module."""
    host = story.host
    host.run("mv /usr/lib/bentpipe/lib /usr/lib/bentpipe/away")
    try:
        assert ended(story.build(0)) == "awake"
        host.run("systemctl kill --signal=USR1 --kill-whom=main bentpipe.service")
        assert ended(begun(story.build(1))) == "awake"
    finally:
        host.run("mv /usr/lib/bentpipe/away /usr/lib/bentpipe/lib")
    assert "Traceback" not in host.journal("bentpipe.service")


def test_a_library_update_restarts_nothing(story: Story) -> None:
    """needrestart would restart a service whose library is not the file of its name any more."""
    host = story.host
    running = begun(story.build(BUILD_S))
    before = story.show("MainPID")
    host.run("library=$(ls /usr/lib/*/libssl.so.3); cp $library $library.new; mv $library.new $library")
    said = host.run("needrestart -r a -l -v 2>&1 || true", deadline_s=DEADLINE_S)
    assert "bentpipe.service" in said
    assert story.show("MainPID") == before
    assert ended(running) == "awake"


def test_removal_leaves_configuration_and_state(story: Story) -> None:
    host = story.host
    said = host.run("dpkg -r bentpipe 2>&1", deadline_s=INSTALL_DEADLINE_S)
    assert "not empty" not in said
    assert story.show("ActiveState", SOCKET) == "inactive"
    assert host.attempt("test -e /usr/lib/bentpipe")[0] != 0
    host.run("test -e /etc/bentpipe/tls.key; test -e /var/lib/bentpipe/ledger.sqlite")
    with pytest.raises(BootedError):
        host.run("ss -Hltn sport = :8372 | grep .")


def test_purge_deletes_the_state_and_no_key_of_the_administrator(story: Story) -> None:
    host = story.host
    host.run("dpkg -P bentpipe 2>&1", deadline_s=INSTALL_DEADLINE_S)
    host.run("test -e /etc/bentpipe/tls.key")
    for path in (
        "/var/lib/bentpipe",
        "/var/lib/private/bentpipe",
        "/var/lib/bentpipe-satellites",
        "/etc/needrestart/conf.d/bentpipe.conf",
        "/etc/default/bentpipe",
    ):
        assert host.attempt("test -e $1", path)[0] != 0, path
    assert host.run("dpkg -l | grep bentpipe || true") == ""
    assert host.run("find /etc/systemd /run/systemd/system -name 'bentpipe*'") == ""
