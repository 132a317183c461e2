"""The commands as their user runs them: the installed program, its words and its exit codes."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bentpipe.config.load import load_config
from bentpipe.daemon.edge.admission import Admission
from bentpipe.daemon.model import SatelliteKey

PROGRAM = Path(sys.executable).with_name("bentpipe")

GOOD = """
[[listener]]
address = "127.0.0.1:0"
[[satellite]]
org = "acme"
name = "ci"
[satellite.process]
command = ["true", "{port}"]
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "bentpipe.toml"
    path.write_text(GOOD)
    return path


def test_check_says_that_a_good_file_is_fine(good: Path) -> None:
    done = run("check", good)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{good}: fine: 1 listeners, 1 satellites\n"


@pytest.mark.parametrize("command", [("check",), ("serve", "--config")])
def test_a_wrong_file_has_every_mistake_told_and_nothing_starts(good: Path, command: tuple[str, ...]) -> None:
    good.write_text(GOOD.replace('name = "ci"', 'name = "c i"').replace("127.0.0.1:0", "nowhere") + "[limits]\nx = 1\n")
    done = run(*command, good)
    assert done.returncode == 2
    assert done.stdout == ""
    where = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert where == ["limits.x", "listener[0].address", "satellite[0].name"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = run("check", tmp_path / "no.toml")
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_serve_says_which_port_is_taken(good: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        good.write_text(GOOD.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        done = run("serve", "--config", good)
    assert done.returncode == 2
    assert done.stderr == f"[Errno 98] cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_new_tokens_section_goes_into_the_file_and_lets_its_token_in(good: Path) -> None:
    done = run("token", "new", "--name", "ci-runner", "--grant", "acme/ci", "--grant", "acme/x*")
    assert done.returncode == 0
    token = done.stdout.splitlines()[1].strip()
    section = done.stdout[done.stdout.index("[[token]]") :]
    assert token not in section
    good.write_text(GOOD + section)
    admission = Admission(load_config(good).token)
    principal = admission.authenticate(token)
    assert principal.name == "ci-runner"
    admission.authorize(principal, SatelliteKey("acme", "ci"))
    admission.authorize(principal, SatelliteKey("acme", "x1"))
    assert run("token", "new").stdout.splitlines()[1].strip() != token


@pytest.mark.parametrize("wrong", [("--name", "ci runner"), ("--grant", "everything")])
def test_no_section_is_printed_that_check_would_refuse(wrong: tuple[str, str]) -> None:
    done = run("token", "new", *wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_doctor_has_one_line_for_each_thing() -> None:
    done = run("doctor")
    names = [line.split()[1].rstrip(":") for line in done.stdout.splitlines()]
    assert names == ["kernel", "OpenSSL", "kTLS", "pipe-user-pages-soft", "nofile", "cgroup", "clock"], done.stdout
    assert done.returncode in (0, 1)
    assert done.stderr == ""
