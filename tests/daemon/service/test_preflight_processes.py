"""`bentpipe check` on the users of local satellites."""

import os
from pathlib import Path

import pytest

from bentpipe.config.load import load_config
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.preflight_processes import process_concerns

LISTENER = '[[listener]]\naddress = "127.0.0.1:0"\n'
SATELLITE = '[[satellite]]\norg = "acme"\nname = "ci"\n[satellite.process]\ncommand = ["true", "{port}"]\n'


def concerns(folder: Path, more: str = "", satellite: str = SATELLITE, subordinate: str = "") -> list[Concern]:
    path, subuid = folder / "bentpipe.toml", folder / "subuid"
    path.write_text(f"{LISTENER}{more}\n{satellite}")
    subuid.write_text(subordinate)
    return list(process_concerns(load_config(path), subuid))


def test_no_users_is_told_unless_that_is_meant(tmp_path: Path) -> None:
    (concern,) = concerns(tmp_path)
    assert not concern.fatal
    assert "can read its keys and its store" in concern.message
    assert concerns(tmp_path, satellite=SATELLITE + 'user = "daemon"\n') == []
    assert concerns(tmp_path, satellite="") == []


@pytest.mark.parametrize(
    ("uids", "words"),
    [
        ("500-600", "between 1000"),
        ("3000-2000", "the lower one first"),
        ("60000-70000", "nobody"),
    ],
)
def test_users_that_cannot_be(tmp_path: Path, uids: str, words: str) -> None:
    (concern,) = concerns(tmp_path, f'[processes]\nuids = "{uids}"')
    assert concern.fatal
    assert words in concern.message


@pytest.mark.parametrize(
    ("subordinate", "taken"),
    [
        ("ada:300000:65536\n", True),
        ("ada:235537:65536\n", True),  # its last one is the first of ours
        ("ada:234464:65536\n", False),
        ("ada:301000:65536\n", False),
        ("ada:300999:1\nnonsense\nada:x:1\n\n", True),
    ],
)
def test_users_that_somebody_has(tmp_path: Path, subordinate: str, taken: bool) -> None:
    found = concerns(tmp_path, '[processes]\nuids = "300000-300999"', subordinate=subordinate)
    fatal = [concern for concern in found if concern.fatal]
    assert bool(fatal) is taken
    assert all("gives to ada" in concern.message for concern in fatal)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_store_that_every_user_may_read(tmp_path: Path, mode: int) -> None:
    store = tmp_path / "ledger.sqlite"
    store.touch()
    store.chmod(mode)
    found = concerns(tmp_path, f'[processes]\nuids = "300000-300999"\n[store]\npath = "{store}"')
    told = [concern.message for concern in found if concern.where == "store.path"]
    assert bool(told) is (mode == 0o644)
    assert all(f"chmod o= {store}" in message for message in told)


def test_another_user_than_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    (concern,) = concerns(tmp_path, '[processes]\nuids = "300000-300999"')
    assert "needs root: started by user 4711" in concern.message
