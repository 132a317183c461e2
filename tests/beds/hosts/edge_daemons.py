"""Real daemons in processes of their own, in front of satellites of several tenants, by default settings."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from beds.hosts.form import first_port_of, write_in_form
from beds.peers.clients import GrpcioClient
from beds.programs import BENTPIPE
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.testbed.edge_host import DATA_PLANE, complete_lines

PATIENCE_S = 60.0


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never: {what}")
        time.sleep(0.02)


def token_of(org: str) -> str:
    """The token that `org`'s clients show."""
    return f"bp_{org}"


@dataclasses.dataclass(frozen=True)
class EdgeDaemon:
    """One `bentpipe serve`."""

    process: subprocess.Popen[bytes]
    log: Path
    known_port: int | None = None
    """Of the first listener, if its data plane is a process of its own: one that lives may have told it to another log."""

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in complete_lines(self.log) if line.startswith("{")]

    def said(self, **fields: str) -> bool:
        return any(all(words in str(record.get(k)) for k, words in fields.items()) for record in self.records())

    @property
    def port(self) -> int:
        said = "listening" if self.known_port is None else "serving"
        wait(lambda: self.said(message=said) or self.process.poll() is not None, "it listens")
        assert self.process.poll() is None, self.log.read_text()
        if self.known_port is not None:
            return self.known_port
        return next(int(str(record["port"])) for record in self.records() if record.get("message") == "listening")

    def ask(self, org: str, name: str, *, token: str | None = None, timeout_s: float = 60.0) -> str:
        """One call on a connection of its own: who answers. Raises CallError."""
        token = token_of(org) if token is None else token
        metadata = (("satellite_name", name), ("satellite_org", org), ("satellite_token", token))
        client = GrpcioClient(self.port, None, metadata)
        try:
            return client.unary("Echo", b"", timeout_s=timeout_s).decode()
        finally:
            client.close()


def config_text(satellites: Mapping[SatelliteKey, str], *, sections: str = "") -> str:
    """A daemon's configuration: each satellite by its own keys, with a token for each org's satellites."""
    tokens = "".join(
        f"""
[[token]]
name = "{org}"
hash = "sha256:{hashlib.sha256(token_of(org).encode()).hexdigest()}"
grants = ["{org}/*"]
"""
        for org in sorted({key.org for key in satellites})
    )
    entries = "".join(
        f'\n[[satellite]]\norg = "{key.org}"\nname = "{key.name}"\n{keys}\n' for key, keys in satellites.items()
    )
    return f"""
[daemon]
log_format = "json"
drain_deadline = "100ms"
[[listener]]
address = "127.0.0.1:0"
{sections}
{tokens}
{entries}
"""


@contextlib.contextmanager
def edge_daemon(
    folder: Path, config: str, *, name: str = "edge", environment: Mapping[str, str] | None = None
) -> Iterator[EdgeDaemon]:
    path, log = folder / f"{name}.toml", folder / f"{name}.log"
    write_in_form(path, config, folder / name)
    known_port = None if DATA_PLANE == "inside" else first_port_of(path)
    log.write_bytes(b"")
    command: Sequence[str | Path] = [BENTPIPE, "serve", "--config", path]
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "AKIDONE")
    with (
        log.open("ab") as file,  # a data plane that an earlier daemon has left writes to it, too
        subprocess.Popen(
            command, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **keys, **(environment or {})}
        ) as process,
    ):
        try:
            yield EdgeDaemon(process, log, known_port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
