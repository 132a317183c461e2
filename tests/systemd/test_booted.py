"""The roots in which units are tested: each has what the shipped units ask for, and two do not see each other."""

from collections.abc import Iterator

import pytest

from beds.booted.machine import Booted, BootedError
from beds.booted.root import SUITES, booted_root
from beds.peers.builds import Missing

pytestmark = pytest.mark.slow

SYSTEMD = {"bookworm": "systemd 252", "trixie": "systemd 257"}


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def host(suite: str) -> Iterator[Booted]:
    try:
        root = booted_root(suite)
    except Missing as exc:
        pytest.skip(str(exc))
    with Booted(root) as booted:
        yield booted


def test_systemd_is_the_first_process(host: Booted, suite: str) -> None:
    assert host.run("cat /proc/1/comm").strip() == "systemd"
    assert host.run("systemctl --version").startswith(SYSTEMD[suite])


def test_a_service_has_its_user_its_state_and_its_cgroup(host: Booted) -> None:
    said = host.run(
        "systemd-run --wait --pipe --quiet -p DynamicUser=yes -p StateDirectory=mine -p ProtectSystem=strict "
        "sh -euc 'id -u; echo kept >$STATE_DIRECTORY/file; cat /proc/self/cgroup; ! touch /etc/written 2>/dev/null'"
    ).split()
    assert 61184 <= int(said[0]) <= 65519  # systemd's dynamic users
    assert said[-1].startswith("0::/system.slice/run-")
    assert host.run("cat /var/lib/mine/file").strip() == "kept"


def test_a_credential_and_a_filter_hold(host: Booted) -> None:
    host.put("/etc/secret", b"secret\n", 0o600)
    service = "systemd-run --wait --pipe --quiet -p DynamicUser=yes -p LoadCredential=key:/etc/secret"
    assert host.run(f"{service} sh -c 'cat $CREDENTIALS_DIRECTORY/key'").strip() == "secret"
    code, _ = host.attempt(f"{service} -p SystemCallFilter=~@swap -p NoNewPrivileges=yes true")
    assert code == 0
    code, _ = host.attempt(f"{service} -p SystemCallFilter=~uname -p SystemCallErrorNumber=EPERM uname")
    assert code != 0


def test_a_failed_command_is_told_with_its_output(host: Booted) -> None:
    with pytest.raises(BootedError, match=r"(?s)ended with 3.*words"):
        host.run("echo words; exit 3")
    with pytest.raises(BootedError, match="did not end"):
        host.run("sleep 60", deadline_s=0.5)


def test_two_of_them_are_two_machines(host: Booted, suite: str) -> None:
    host.run("systemd-run --quiet --unit=mine sleep 1000; echo mine >/etc/mine")
    with Booted(booted_root(suite)) as other:
        assert other.attempt("systemctl is-active mine")[0] != 0
        assert other.attempt("test -e /etc/mine")[0] != 0
    assert host.run("systemctl is-active mine").strip() == "active"
    assert not (booted_root(suite) / "etc/mine").exists()
