"""Real local processes behind running instances, each on a loopback address of its own. Optional.

Stopped processes (SIGSTOP) stand for kept memory. `machine_init` is each machine's first process: whatever the machine has
started ends with the machine, and all machines end with the emulator.
"""

import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from bentpipe.daemon.testbed.ec2_emulator import machine_init
from bentpipe.daemon.testbed.ec2_emulator.instance import Instance, MemoryStep

USER_DATA_NAME = "EMULATED_USER_DATA"
"""The variable in which a machine's process gets the user data of its boot."""
METADATA_NAME = "EMULATED_METADATA"
"""The variable in which it gets the address of its metadata service, which has the user data of the moment."""


class _Machine:
    """A machine with power."""

    def __init__(self, argv: Sequence[str], known: Mapping[str, str]) -> None:
        """`known` are variables that its command gets."""
        self._power, far = socket.socketpair()
        with far:
            # A session of its own: a ^C in the terminal is for the emulator, which ends its machines.
            self.init = subprocess.Popen(
                [sys.executable, "-I", "-S", machine_init.__file__, *argv],
                stdin=far.fileno(),
                start_new_session=True,
                env={**os.environ, **known},
            )
        self._started = False

    def freeze(self) -> None:
        """Stop all its processes. Returns when none can run."""
        if not self._started:
            # Until then the command may still be about to start.
            self._power.recv(1)
            self._started = True
        machine_init.freeze(self.init.pid)

    def thaw(self) -> None:
        """Let all its processes run again."""
        machine_init.thaw(self.init.pid)

    def kill(self) -> None:
        """Take its power. Returns when none of its processes is left."""
        self._power.close()
        self.init.wait()


class EmulatedMachines:
    """Starts, freezes and kills the command of each instance. `{host}`, `{port}` and `{instance_id}` are replaced."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self._command = tuple(command)
        self.port = port
        self.metadata_url = ""
        """Followed by an instance's id."""
        self._machines: dict[str, _Machine] = {}
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ec2 machines", daemon=True)
        self._thread.start()

    def follow(self, instance: Instance, memory: MemoryStep) -> None:
        """Do to the machine what has happened to the instance's memory. Returns at once."""
        instance_id, host, user_data = instance.instance_id, instance.private_ip, instance.user_data
        match memory:
            case MemoryStep.BOOTED:
                self._work.put(lambda: self._boot(instance_id, host, user_data))
            case MemoryStep.RESUMED:
                self._work.put(lambda: self._thaw(instance_id))
            case MemoryStep.KEPT:
                self._work.put(lambda: self._freeze(instance_id))
            case MemoryStep.LOST:
                self._work.put(lambda: self._kill(instance_id))

    def pid(self, instance_id: str) -> int | None:
        """The machine's first process: the same one as long as its memory is kept. None: nothing of it runs."""
        machine = self._machines.get(instance_id)
        return None if machine is None else machine.init.pid

    def close(self) -> None:
        """Take the power from every machine. Returns when none of their processes is left."""
        self._work.put(None)
        self._thread.join()
        for instance_id in list(self._machines):
            self._kill(instance_id)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _boot(self, instance_id: str, host: str, user_data: str) -> None:
        self._kill(instance_id)
        names = {"{host}": host, "{port}": str(self.port), "{instance_id}": instance_id}
        argv = []
        for argument in self._command:
            for name, value in names.items():
                argument = argument.replace(name, value)
            argv.append(argument)
        known = {USER_DATA_NAME: user_data, METADATA_NAME: f"{self.metadata_url}/{instance_id}"}
        self._machines[instance_id] = _Machine(argv, known)

    def _freeze(self, instance_id: str) -> None:
        if machine := self._machines.get(instance_id):
            machine.freeze()

    def _thaw(self, instance_id: str) -> None:
        if machine := self._machines.get(instance_id):
            machine.thaw()

    def _kill(self, instance_id: str) -> None:
        if machine := self._machines.get(instance_id):
            machine.kill()
            del self._machines[instance_id]


class Addresses:
    """Private addresses that no other instance has. They are on loopback if processes listen on them."""

    def __init__(self, *, loopback: bool) -> None:
        # 127.64 to 127.191, chosen at random: several emulators may run beside each other.
        self._net = (127, 64 + secrets.randbelow(128), secrets.randbelow(256)) if loopback else (10, 0, 0)
        self._given = 0

    def give(self) -> str:
        self._given += 1
        first, second, third = self._net
        third = (third + self._given // 250) % 256
        return f"{first}.{second}.{third}.{self._given % 250 + 1}"
