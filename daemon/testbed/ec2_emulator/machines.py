"""Real local processes behind running instances, each on a loopback address of its own. Optional.

A stopped process group (SIGSTOP) stands for kept memory. One thread starts all processes and lives as long as the emulator,
because the kernel sends the parent-death signal when the thread that has forked ends.
"""

import contextlib
import os
import queue
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence

from bentpipe.daemon.testbed.ec2_emulator.instance import Instance, MemoryStep

USER_DATA_NAME = "EMULATED_USER_DATA"
"""The variable in which a machine's process gets its user data: it stands for the metadata service."""


class EmulatedMachines:
    """Starts, freezes and kills the command of each instance. `{host}`, `{port}` and `{instance_id}` are replaced."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self._command = tuple(command)
        self.port = port
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ec2 machines", daemon=True)
        self._thread.start()

    def follow(self, instance: Instance, memory: MemoryStep) -> None:
        """Do to the process what has happened to the instance's memory. Returns at once."""
        instance_id, host, user_data = instance.instance_id, instance.private_ip, instance.user_data
        match memory:
            case MemoryStep.BOOTED:
                self._work.put(lambda: self._boot(instance_id, host, user_data))
            case MemoryStep.RESUMED:
                self._work.put(lambda: self._signal(instance_id, signal.SIGCONT))
            case MemoryStep.KEPT:
                self._work.put(lambda: self._signal(instance_id, signal.SIGSTOP))
            case MemoryStep.LOST:
                self._work.put(lambda: self._kill(instance_id))

    def pid(self, instance_id: str) -> int | None:
        child = self._children.get(instance_id)
        return None if child is None else child.pid

    def close(self) -> None:
        """Kill every process and wait for it."""
        self._work.put(None)
        self._thread.join()
        for instance_id in list(self._children):
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
        environment = {**os.environ, USER_DATA_NAME: user_data}
        if setpriv := shutil.which("setpriv"):
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        self._children[instance_id] = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, start_new_session=True, env=environment
        )

    def _signal(self, instance_id: str, number: signal.Signals) -> None:
        child = self._children.get(instance_id)
        if child is not None and child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)

    def _kill(self, instance_id: str) -> None:
        self._signal(instance_id, signal.SIGKILL)
        if child := self._children.pop(instance_id, None):
            child.wait()


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
