"""What can be wrong between an edge host and EC2, each made with the emulator and the real daemon.

The table in docs/troubleshooting.md has a row for each: `tests/e2e/test_troubleshooting.py` compares what clients are told.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc

from beds.mistakes import DEADLINE_S, LISTENER, TOKEN, refusal, satellite, token
from beds.programs import BENTPIPE
from bentpipe.daemon.testbed.cloud import CREDENTIALS
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

UNREACHED = "nothing is at the cloud's address"
CLOCK = "this host's clock is wrong"
OF_START: Mapping[str, tuple[str, int]] = {
    "AWS credentials are wrong": ("AuthFailure", 401),
    "AWS credentials have expired": ("ExpiredToken", 400),
    "the role may not make a call": ("UnauthorizedOperation", 403),
    "a quota of AWS is used up": ("VcpuLimitExceeded", 400),
}
"""Answers to StartInstances: EC2's code and HTTP status."""
MISTAKES = (*OF_START, CLOCK, UNREACHED)
"""In an order in which they can be made: after the last one there is no cloud any more."""
AHEAD_S = 7_200.0


def _machine(instance_id: str, name: str) -> str:
    ec2 = f'provider = "ec2"\nsleep_mode = "stop"\n[satellite.ec2]\ninstance_id = "{instance_id}"\nport = 8372\n'
    return satellite(ec2, name)


class CloudEdge:
    """A daemon with one satellite for each mistake."""

    def __init__(self, folder: Path, cloud: Emulator, stop: contextlib.ExitStack) -> None:
        self._cloud = cloud
        self._stop = stop
        self._names = {mistake: f"s{number}" for number, mistake in enumerate(MISTAKES)}
        self._ids = {mistake: cloud.control.add_instance(hibernation=False) for mistake in MISTAKES}
        machines = "".join(_machine(self._ids[mistake], name) for mistake, name in self._names.items())
        head = f'[daemon]\nlog_format = "json"\ndrain_deadline = "1s"\n[ec2]\nendpoint = "{cloud.url}"\n'
        path, self._log = folder / "cloud.toml", folder / "cloud.log"
        path.write_text(head + LISTENER + machines + token("acme/*"))
        with self._log.open("wb") as log:
            environment = {**os.environ, **CREDENTIALS}
            self.process = subprocess.Popen([BENTPIPE, "serve", "--config", path], stderr=log, env=environment)
        self._port = 0

    def wait_listening(self) -> None:
        """Until clients can connect."""
        while not self._port:
            assert self.process.poll() is None, self._log.read_text()
            lines = self._log.read_text().splitlines()
            told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
            self._port = next((int(each["port"]) for each in told if each["message"] == "listening"), 0)

    def make(self, mistake: str) -> str:
        """Make it. Returns what a client is told whose satellite would have to be woken."""
        if mistake in OF_START:
            code, status = OF_START[mistake]
            instance_id = self._ids[mistake]
            self._cloud.control.fail(
                action="StartInstances", code=code, status=status, times=None, instance_id=instance_id
            )
        elif mistake == CLOCK:
            self._cloud.control.set_ahead(seconds=AHEAD_S)
        else:
            self._stop.close()
        try:
            return refusal(grpc.insecure_channel(f"127.0.0.1:{self._port}"), self._names[mistake], TOKEN)
        finally:
            self._cloud.control.set_ahead(seconds=0.0)


@contextlib.contextmanager
def cloud_edge(folder: Path) -> Iterator[CloudEdge]:
    """A daemon and its cloud until the end of the block."""
    with contextlib.ExitStack() as stop:
        cloud = stop.enter_context(Emulator())
        edge = CloudEdge(folder, cloud, stop)
        try:
            edge.wait_listening()
            yield edge
        finally:
            edge.process.terminate()
            edge.process.wait(DEADLINE_S)
