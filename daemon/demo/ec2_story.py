"""The story that `bentpipe demo --ec2` tells: the same promises with EC2 (emulated) as the cloud.

Emulated time runs faster than ours by `SPEED`; what the acts print is our own time.
"""

import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
from rich.console import Console

from bentpipe.daemon.demo.narrator import Narrator, PromiseBroken, play, timed_s, wide_console
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.ports import reserve_port
from bentpipe.daemon.testbed.client import DemoClient, stampede
from bentpipe.daemon.testbed.cloud import CREDENTIALS, EmulatedCloud
from bentpipe.daemon.testbed.edge_host import CloudSatellite, EdgeHost

SPEED = 8.0
HERD = 200
SLEEP_AFTER_S = 3.0
SLEEP_DEADLINE_S = 40.0
CAPACITY_RETRY = 'capacity_retry_after = "4s"'
"""Instead of minutes."""
LOOK_S = 0.1
"""Time between looks at EC2's answers, for the story only."""
LOCALHOST = "127.0.0.1"
NAMES = ("solo", "herd", "plain", "scarce", "locked")
CANNOT_HIBERNATE = {"plain"}
MACHINE = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}", "--host", "{host}")
SETTINGS = """
[ec2]
region = "eu-central-1"
endpoint = "{url}"
poll = "200ms"
sweep = "1s"
[prices]
awake_hour = 0.20
always_hour = 0.01
"""
"""Prices of m7g.xlarge and its disk, roughly. The looks are as much faster as the emulated time."""


class Ec2Story(Narrator):
    """Tells the acts on one edge host in front of one emulated region."""

    def __init__(self, host: EdgeHost, cloud: EmulatedCloud, instances: dict[str, str], console: Console) -> None:
        super().__init__(console)
        self._host = host
        self._cloud = cloud
        self._instances = instances
        self._pids: dict[str, int | None] = {}
        """Processes behind instances when they were put to sleep."""

    def tell(self) -> None:
        """Run every act in order. Raises PromiseBroken, grpc.RpcError."""
        self.tell_acts(self.cold_wake, self.herd, self.sleep, self.wake_again, self.no_capacity, self.no_key)

    def cold_wake(self) -> None:
        """1. A cold wake: one client, its instance stopped"""
        seen: list[str] = []
        with DemoClient(self._host, "solo") as client:
            begun = time.monotonic()
            answer = client.echo_future(b"hello")
            while not answer.done():
                self._note("solo", seen)
                time.sleep(LOOK_S)
            cold_s = time.monotonic() - begun
            self.expect("answered", held=answer.result() == b"hello")
            warm_s = min(timed_s(lambda: client.echo(b"hello")) for _ in range(20))
        self._note("solo", seen)
        self.say(f"EC2 said: {', '.join(seen)}")
        self.say(f"first answer after {cold_s:.2f} s, the next in {warm_s * 1000:.2f} ms (best of 20)")
        self.expect("one StartInstances", held=self._starts("solo") == 1)

    def herd(self) -> None:
        """2. A herd: 200 clients at once, each on a connection of its own, one stopped instance"""
        right, took_s = stampede(self._host, "herd", HERD)
        self.say(f"{right} right answers in {took_s:.2f} s, {self._starts('herd')} StartInstances")
        self.expect(f"one start, {HERD} answers", held=right == HERD and self._starts("herd") == 1)

    def sleep(self) -> None:
        """3. Nobody there: hibernated where the instance can, stopped where it cannot"""
        with DemoClient(self._host, "plain") as client:
            client.echo(b"wake up")
        self._pids = {name: self._cloud.view(self._instances[name]).pid for name in ("solo", "plain")}
        for name, reason in (("solo", "Client.UserInitiatedHibernate"), ("plain", "Client.UserInitiatedShutdown")):
            seen = self._follow_to_sleep(name)
            self.say(f"{name}: EC2 said: {', '.join(seen)}")
            self.expect(f"{name} is asleep by {reason}", held=seen[-1] == f"stopped ({reason})")

    def wake_again(self) -> None:
        """4. They come back: one from memory, one from disk"""
        for name, kept in (("solo", True), ("plain", False)):
            with DemoClient(self._host, name) as client:
                took_s = timed_s(functools.partial(client.echo, b"again"))
            same = self._cloud.view(self._instances[name]).pid == self._pids[name]
            self.say(f"{name}: first answer after {took_s:.2f} s, from {'the same' if same else 'another'} process")
            self.expect(f"{name} {'kept its memory' if kept else 'has booted'}", held=same is kept)

    def no_capacity(self) -> None:
        """5. EC2 has no such machine free, and then has one again"""
        self._cloud.exhaust(self._instances["scarce"])
        self._refused("scarce", grpc.StatusCode.UNAVAILABLE)
        asked = self._starts("scarce")
        self._refused("scarce", grpc.StatusCode.UNAVAILABLE)
        self.expect("the failure is remembered: the second client cost no call", held=self._starts("scarce") == asked)
        self._cloud.recover()
        begun = time.monotonic()
        while True:
            try:
                with DemoClient(self._host, "scarce") as client:
                    client.echo(b"now?")
                break
            except grpc.RpcError as exc:
                if time.monotonic() - begun > SLEEP_DEADLINE_S:
                    raise PromiseBroken("it never recovered") from exc
                time.sleep(LOOK_S)
        self.say(f"answered {time.monotonic() - begun:.1f} s after there was capacity again")
        self.expect("recovered without anybody's help", held=True)

    def no_key(self) -> None:
        """6. EC2 accepts the start, but may not use the disk's key (kms:CreateGrant is missing)"""
        self._cloud.forbid_key(self._instances["locked"])
        self._refused("locked", grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)

    def _refused(self, satellite: str, *expected: grpc.StatusCode) -> None:
        with DemoClient(self._host, satellite) as client:
            try:
                client.echo(b"hello")
            except grpc.RpcError as exc:
                self.say(f"{exc.code()}: {exc.details()}")
                self.expect(f"refused with {exc.code().name}", held=exc.code() in expected)
            else:
                raise PromiseBroken(f"{satellite} answered")

    def _starts(self, name: str) -> int:
        return self._cloud.start_calls(self._instances[name])

    def _note(self, name: str, seen: list[str]) -> None:
        look = self._cloud.view(self._instances[name])
        words = f"{look.state} ({look.reason})" if look.state == "stopped" else look.state
        if not seen or seen[-1] != words:
            seen.append(words)

    def _follow_to_sleep(self, name: str) -> list[str]:
        """Return the instance states that EC2 reports until the satellite is asleep. Raises TimeoutError."""
        seen: list[str] = []
        deadline = time.monotonic() + SLEEP_DEADLINE_S
        while self._host.state_of(name) is not SatelliteState.SLEEP:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not fall asleep in {SLEEP_DEADLINE_S:g} s: {seen}")
            self._note(name, seen)
            time.sleep(LOOK_S)
        self._note(name, seen)
        return seen


def run_ec2_demo() -> int:
    """Run the demo with the EC2 emulator as the cloud. Returns 0 if every promise held, else 1."""
    console = wide_console()
    with (
        reserve_port(LOCALHOST) as reservation,
        EmulatedCloud(speed=SPEED, port=reservation.port, machine_command=MACHINE) as cloud,
    ):
        instances = {name: cloud.add_instance(hibernation=name not in CANNOT_HIBERNATE) for name in NAMES}
        satellites = [CloudSatellite(name, instances[name], reservation.port, CAPACITY_RETRY) for name in NAMES]
        settings = SETTINGS.format(url=cloud.url)
        with EdgeHost(satellites, sleep_after_s=SLEEP_AFTER_S, settings=settings, environment=CREDENTIALS) as host:
            begun = time.monotonic()
            console.print(f"bentpipe serves TLS on localhost:{host.port}; {len(NAMES)} EC2 instances, all stopped;")
            console.print(f"emulated time runs {SPEED:g} times as fast: a start takes 16.5 s of it, a hibernation 30 s")
            code = play(host, console, NAMES, Ec2Story(host, cloud, instances, console).tell)
            if code == 0:
                print_report(host, console, time.monotonic() - begun)
            return code


def print_report(host: EdgeHost, console: Console, span_s: float) -> None:
    """Show what `bentpipe report` says of the last `span_s` seconds, and leave its picture."""
    picture = Path(tempfile.gettempdir()) / "bentpipe-demo-ec2.svg"
    command = [sys.executable, "-P", "-m", "bentpipe.daemon.service.entry", "report"]
    arguments = ["--config", str(host.config_path), "--since", f"{span_s:.0f}s", "--svg", str(picture)]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    console.print(f"\n[bold]bentpipe report[/bold]\n{done.stdout}")
    console.print(f"the report's picture: {picture}")
