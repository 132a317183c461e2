"""The cloud of `bentpipe demo --ec2`: the EC2 emulator in a process of its own, and its controls."""

import dataclasses
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter

from bentpipe.daemon.testbed.edge_host import end_process

PROGRAM = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.ec2_emulator.main")
ANSWER_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "emulated",
    "AWS_SECRET_ACCESS_KEY": "emulated",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Credentials for the daemon's environment. The emulator accepts any."""


@dataclasses.dataclass(frozen=True, slots=True)
class InstanceView:
    """EC2's state of an instance, the code of its StateReason, and the process that runs as its machine."""

    instance_id: str
    state: str
    reason: str
    pid: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    instance_ids: tuple[str, ...]


_VIEWS = TypeAdapter(list[InstanceView])
_CALLS = TypeAdapter(list[_Call])


class EmulatedCloud:
    """Runs the emulator. `machine_command` (with {host} and {port}) is the machine of every running instance."""

    def __init__(self, *, speed: float, port: int, machine_command: Sequence[str]) -> None:
        arguments = ["--speed", str(speed), "--machine-port", str(port), "--machine-command", *machine_command]
        self._command = [*PROGRAM, *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._process.stdout is None or not (line := self._process.stdout.readline()):
            raise RuntimeError("the EC2 emulator did not start")
        self.url = str(json.loads(line)["url"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        end_process(self._process, STOP_DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def add_instance(self, *, hibernation: bool) -> str:
        """Create a stopped instance. Returns its id."""
        return str(self._post("add_instance", hibernation=hibernation))

    def exhaust(self, instance_id: str) -> None:
        """Let the instance's starts fail for lack of capacity, until `recover`."""
        self._post(
            "fail",
            action="StartInstances",
            code="InsufficientInstanceCapacity",
            message="We currently do not have sufficient m7g.large capacity in the Availability Zone you requested.",
            status=500,
            times=None,
            instance_id=instance_id,
        )

    def recover(self) -> None:
        """Have capacity again."""
        self._post("clear_faults")

    def forbid_key(self, instance_id: str) -> None:
        """Accept the instance's starts, and let them fail as without kms:CreateGrant."""
        self._post("script", instance_id=instance_id, on_start="no-key")

    def start_calls(self, instance_id: str) -> int:
        """How many StartInstances calls have named the instance."""
        calls = _CALLS.validate_python(self._post("calls", action="StartInstances"))
        return sum(instance_id in call.instance_ids for call in calls)

    def view(self, instance_id: str) -> InstanceView:
        """EC2's state of the instance, and the process that runs as its machine."""
        seen = {each.instance_id: each for each in _VIEWS.validate_python(self._post("describe"))}
        return seen[instance_id]

    def _post(self, name: str, **arguments: object) -> object:
        body = json.dumps(arguments).encode()
        with urllib.request.urlopen(f"{self.url}/control/{name}", body, ANSWER_DEADLINE_S) as answer:
            result: object = json.loads(answer.read())["result"]
        return result
