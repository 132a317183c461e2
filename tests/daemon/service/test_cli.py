"""The commands as their user runs them: the installed program, its words and its exit codes."""

import datetime
import socket
import subprocess
import time
from pathlib import Path

import pytest

from beds.programs import BENTPIPE
from bentpipe.config.load import load_config
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.model import SatelliteKey

GOOD = """
[[listener]]
address = "127.0.0.1:0"
[[satellite]]
org = "acme"
name = "ci"
[satellite.process]
command = ["true", "{port}"]
user = "daemon"
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BENTPIPE, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "bentpipe.toml"
    path.write_text(GOOD)
    return path


def test_check_says_that_a_good_file_is_fine(good: Path) -> None:
    done = run("check", good)
    assert (done.returncode, done.stderr) == (0, "")
    fine, form = done.stdout.splitlines()
    assert fine == f"{good}: fine: 1 listeners, 1 satellites"
    assert form.startswith("connections live in a process of their own: ")


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


@pytest.mark.parametrize("command", [("check",), ("serve", "--config")])
def test_a_signing_key_that_is_not_one_is_told_before_the_start(
    good: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    key = tmp_path / "session.key"
    key.write_text("not a key")
    good.write_text(GOOD + f'[accounts]\nsigning_key = "{key}"\n')
    done = run(*command, good)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"[accounts] signing_key: {key}: not a private key in PEM" in done.stderr


def test_a_data_plane_to_which_nobody_would_come_is_refused(good: Path) -> None:
    good.write_text('[daemon]\ndata_plane = "inside"\n' + good.read_text())
    done = run("dataplane", "--config", good)
    assert (done.returncode, "no control plane would come" in done.stderr) == (2, True)
    done = run("serve", "--config", good, "--planes", good.parent / "planes")
    assert (done.returncode, "started with --planes" in done.stderr) == (2, True)


def test_serve_says_which_port_is_taken(good: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        good.write_text(GOOD.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        done = run("serve", "--config", good)
    assert done.returncode == 2
    assert f"[Errno 98] cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr.splitlines()


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
    expected = ["kernel", "OpenSSL", "greeting", "kTLS", "priority", "pipe-user-pages-soft", "nofile", "tcp_syncookies"]
    assert names == [*expected, "cgroup", "users", "clock"], done.stdout
    assert done.returncode in (0, 1)
    assert done.stderr == ""


def test_tokens_of_the_store_are_added_listed_and_revoked(good: Path, tmp_path: Path) -> None:
    configured = run("token", "new", "--name", "fixed", "--grant", "acme/*").stdout.partition("configuration:\n")[2]
    good.write_text(GOOD + configured + f'[store]\npath = "{tmp_path / "ledger.sqlite"}"\n')
    added = run("token", "add", "--config", good, "--name", "ci", "--grant", "acme/ci", "--grant", "acme/b-*")
    assert (added.returncode, added.stderr) == (0, "")
    secret = added.stdout.split()[-1]
    assert secret.startswith("bp_")
    listed = run("token", "list", "--config", good)
    assert listed.stdout == (
        'fixed\tconfiguration\t["acme/*"]\tuse\tnever\tfixed\nci\tstore\t["acme/ci", "acme/b-*"]\tuse\tnever\tci\n'
    )
    assert secret not in listed.stdout
    for name, words in (("ci", "already"), ("fixed", "already")):
        again = run("token", "add", "--config", good, "--name", name, "--grant", "acme/*")
        assert again.returncode == 2
        assert words in again.stderr
    wrong = run("token", "revoke", "--config", good, "fixed")
    assert wrong.returncode == 2
    assert f"it is in {good}" in wrong.stderr
    assert run("token", "revoke", "--config", good, "ci").returncode == 0
    assert run("token", "list", "--config", good).stdout.count("\n") == 1


def test_a_token_has_scopes_an_end_and_a_principal(good: Path, tmp_path: Path) -> None:
    good.write_text(GOOD + f'[store]\npath = "{tmp_path / "ledger.sqlite"}"\n')
    asked = ("--name", "a", "--grant", "acme/*", "--scope", "manage", "--principal", "team", "--expires", "90d")
    assert run("token", "add", "--config", good, *asked).returncode == 0
    line = run("token", "list", "--config", good).stdout
    name, source, grants, scopes, expires, principal = line.rstrip("\n").split("\t")
    assert (name, source, grants, scopes, principal) == ("a", "store", '["acme/*"]', "manage", "team")
    left_s = datetime.datetime.fromisoformat(expires).timestamp() - time.time()
    assert 89 * 86400 < left_s <= 90 * 86400
    for wrong in (("--scope", "all"), ("--expires", "soon")):
        refused = run("token", "add", "--config", good, "--name", "b", "--grant", "acme/*", *wrong)
        assert refused.returncode == 2
        assert wrong[1] in refused.stderr


def test_orgs_are_added_listed_and_revoked(good: Path, tmp_path: Path) -> None:
    good.write_text(GOOD + f'[store]\npath = "{tmp_path / "ledger.sqlite"}"\n')
    assert run("org", "add", "--config", good, "beta").returncode == 0
    again = run("org", "add", "--config", good, "beta")
    assert (again.returncode, again.stderr) == (2, "there is an org 'beta' already\n")
    assert run("org", "list", "--config", good).stdout == "acme\tconfiguration\tallowed\nbeta\tstore\tallowed\n"
    for name in ("acme", "beta"):
        assert run("org", "revoke", "--config", good, "--cut", name).returncode == 0
    assert run("org", "list", "--config", good).stdout == "acme\tconfiguration\trevoked\nbeta\tstore\trevoked\n"
    assert run("org", "add", "--config", good, "acme").returncode == 0
    assert run("org", "list", "--config", good).stdout.startswith("acme\tconfiguration\tallowed\n")
    missing = run("org", "revoke", "--config", good, "nobody")
    assert (missing.returncode, missing.stderr) == (2, f"there is no org 'nobody' in the store or in {good}\n")
    assert run("org", "add", "--config", good, "a b").returncode == 2


def test_rules_are_listed_revoked_and_allowed(good: Path, tmp_path: Path) -> None:
    rules = """
[[oidc_issuer]]
name = "gh"
issuer = "https://token.actions.githubusercontent.com"
audience = "bentpipe"
[[oidc_rule]]
name = "main"
issuer = "gh"
claims = { repository_id = "1" }
patterns = { ref = "refs/heads/*" }
grants = ["acme/*"]
"""
    good.write_text(GOOD + rules + f'[store]\npath = "{tmp_path / "ledger.sqlite"}"\n')
    line = 'main\tgh\t{"repository_id": "1", "ref": "refs/heads/*"}\t["acme/*"]\t'
    assert run("oidc", "rules", "--config", good).stdout == f"{line}allowed\n"
    assert run("oidc", "revoke", "--config", good, "--cut", "--rule", "main").returncode == 0
    assert run("oidc", "rules", "--config", good).stdout == f"{line}revoked\n"
    assert run("oidc", "allow", "--config", good, "--rule", "main").returncode == 0
    assert run("oidc", "rules", "--config", good).stdout == f"{line}allowed\n"
    again = run("oidc", "allow", "--config", good, "--rule", "main")
    assert (again.returncode, again.stderr) == (2, "the rule 'main' is not revoked\n")
    assert run("oidc", "revoke", "--config", good, "--exchange", "0a1b").returncode == 0
    for wrong in (("--rule", "other"), ("--exchange", "a b"), (), ("--rule", "main", "--exchange", "0a")):
        assert run("oidc", "revoke", "--config", good, *wrong).returncode == 2


def test_tokens_need_a_store_and_a_grant_that_is_one(good: Path, tmp_path: Path) -> None:
    nowhere = run("token", "add", "--config", good, "--name", "ci", "--grant", "acme/*")
    assert nowhere.returncode == 2
    assert "no store" in nowhere.stderr
    good.write_text(GOOD + f'[store]\npath = "{tmp_path / "ledger.sqlite"}"\n')
    wrong = run("token", "add", "--config", good, "--name", "ci", "--grant", "acme")
    assert wrong.returncode == 2
    assert "expected ORG/NAME" in wrong.stderr
