"""`bentpipe reload`: the daemon of this host takes over its configuration as it is in the files now; waits for the verdict.

Run by root, it also reads the files of the unit's LoadCredential= and passes them on: systemd gives them to a service at its
start alone, and the daemon cannot read them itself.
"""

import contextlib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click

from bentpipe.config.model import ControlSection
from bentpipe.daemon.service.control import (
    CREDENTIAL_NAMES,
    MOST_FILES,
    RELOAD_DEADLINE_S,
    SERVICE_SOCKET,
    ControlError,
    ask,
)
from bentpipe.daemon.service.installed import find_service, is_same_file

ANSWER_EXTRA_S = 5.0
"""The command waits for so much longer than the daemon takes at most."""
CONTROL_PATH = re.compile(r"^\[control\][^\[]*?^path\s*=\s*[\"']([^\"'\n]+)[\"']", re.MULTILINE | re.DOTALL)
"""The path of the socket in a text that is not TOML."""
MOST_CREDENTIAL_BYTES = 1 << 20
"""systemd's own limit (systemd.exec(5))."""


def run_reload(config_path: Path | None, *, dry_run: bool) -> None:
    """Reload, or with `dry_run` show what a reload would change. Raises ControlError, which says what is wrong, OSError."""
    with contextlib.ExitStack() as opened:
        names, files = [], []
        for name, file in _credentials(config_path, opened):
            names.append(name)
            files.append(file)
        answer = ask(
            _socket_of(config_path),
            "reload",
            {"dry_run": dry_run, CREDENTIAL_NAMES: names},
            files=files,
            deadline_s=RELOAD_DEADLINE_S + ANSWER_EXTRA_S,
        )
    changes, warnings, pending = answer.get("changes"), answer.get("warnings"), answer.get("pending")
    if not isinstance(changes, list) or not isinstance(warnings, list) or not isinstance(pending, dict):
        raise ControlError("the daemon's answer is not one to a reload: it is of another version")
    for each in changes:
        click.echo(f"{each['where']}: {each['words']} ({each['effect']})")
    for each in warnings:
        click.echo(str(each), err=True)
    for satellite, words in pending.items():
        click.echo(f"waits: satellite {satellite}: {words}")
    done = "would change" if dry_run else "changed"
    click.echo(f"{len(changes)} keys or entries {done}; certificates and authorities are read again at each reload")


def _socket_of(config_path: Path | None) -> Path:
    """Where the daemon listens, also if the configuration has mistakes: the daemon is to say which."""
    section = ControlSection()
    if config_path is not None:
        with contextlib.suppress(OSError, ValueError):
            section = ControlSection.model_validate(_control_in(config_path.read_text()))
    return section.socket_path() or SERVICE_SOCKET


def _control_in(text: str) -> object:
    try:
        return tomllib.loads(text).get("control", {})
    except tomllib.TOMLDecodeError:
        found = CONTROL_PATH.search(text)
        return {"path": found[1]} if found is not None else {}


def _credentials(config_path: Path | None, opened: contextlib.ExitStack) -> Iterator[tuple[str, int]]:
    """The unit's credentials as their files are now, in memory; none for a daemon that is not the unit's."""
    service = find_service()
    if service is None or service.config_path is None or os.geteuid() != 0:
        return
    if config_path is not None and not is_same_file(service.config_path, config_path):
        return
    if len(service.credentials) > MOST_FILES:
        raise ControlError(f"the unit has over {MOST_FILES} credentials")
    for name, path in service.credentials.items():
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # the daemon goes on with the one of its start
        if len(data) > MOST_CREDENTIAL_BYTES:
            raise ControlError(f"{path}: a credential has at most {MOST_CREDENTIAL_BYTES} bytes")
        file = os.memfd_create(name, os.MFD_CLOEXEC)
        opened.callback(os.close, file)
        with os.fdopen(os.dup(file), "wb") as writing:
            writing.write(data)
        yield name, file
