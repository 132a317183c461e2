"""The story that `bentpipe demo` tells: one act for each promise. It ends with exit code 0 only if all promises held."""

import concurrent.futures
import time
from collections.abc import Callable

import grpc
from rich.console import Console

from bentpipe.daemon.demo.narrator import Narrator, PromiseBroken, play, timed_s, wide_console
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.testbed.client import DemoClient, demo_block, stampede
from bentpipe.daemon.testbed.edge_host import MAIN_THREAD, DemoSatellite, EdgeHost

HERD = 200
STREAM_BYTES = 1 << 30
BOOT_S = 1.0
LATE_BOOT_S = 3.0
"""The daemon is killed and started again in that time."""
SLEEP_AFTER_S = 4.0
SLEEP_DEADLINE_S = 30.0

SATELLITES = (
    DemoSatellite("solo", ("--boot", str(BOOT_S))),
    DemoSatellite("herd", ("--boot", str(BOOT_S))),
    DemoSatellite("stream", ("--boot", str(BOOT_S))),
    DemoSatellite("broken", ("--boot", "0.3", "--fail")),
    DemoSatellite("late", ("--boot", str(LATE_BOOT_S))),
)


class Story(Narrator):
    """Tells the acts on one edge host."""

    def __init__(self, host: EdgeHost, console: Console) -> None:
        super().__init__(console)
        self._host = host

    def tell(self) -> None:
        """Run every act in order. Raises PromiseBroken, grpc.RpcError."""
        self.tell_acts(self.cold_wake, self.herd, self.stream, self.refusals, self.killed, self.sleep_and_resume)

    def cold_wake(self) -> None:
        """1. A cold wake: one client, its satellite asleep"""
        with DemoClient(self._host, "solo") as client:
            cold_s = timed_s(lambda: client.echo(b"hello"))
            warm_s = min(timed_s(lambda: client.echo(b"hello")) for _ in range(20))
        self.say(f"first answer after {cold_s:.3f} s (the satellite takes {BOOT_S:g} s to boot, then starts grpcio)")
        self.say(f"next answers on the spliced connection: {warm_s * 1000:.2f} ms (best of 20)")
        self.expect("woken once", held=self._host.starts("solo") == 1)

    def herd(self) -> None:
        """2. A herd: 200 clients at once, each on a connection of its own, one sleeping satellite"""
        right, took_s = stampede(self._host, "herd", HERD)
        self.say(f"{right} right answers in {took_s:.3f} s, {self._host.starts('herd')} start")
        self.expect(f"one start, {HERD} answers", held=right == HERD and self._host.starts("herd") == 1)

    def stream(self) -> None:
        """3. 1 GiB up and 1 GiB down over TLS"""
        block = demo_block()
        with DemoClient(self._host, "stream") as client:
            client.echo(b"wake up first")
            transfers: tuple[tuple[str, Callable[[], tuple[str, str]]], ...] = (
                ("up", lambda: client.upload(STREAM_BYTES, block)),
                ("down", lambda: client.download(STREAM_BYTES)),
            )
            for way, transfer in transfers:
                before = self._host.cpu_s()
                begun = time.monotonic()
                sent, received = transfer()
                took_s = time.monotonic() - begun
                used = {name: s - before.get(name, 0.0) for name, s in self._host.cpu_s().items()}
                engine_s = sum(s for name, s in used.items() if name.startswith("bp-engine"))
                self.say(
                    f"{way:4} {took_s:.1f} s, {STREAM_BYTES / took_s / 1e9:.2f} GB/s; "
                    f"CPU: Python {used[MAIN_THREAD]:.2f} s, engine threads {engine_s:.2f} s"
                )
                self.expect(f"SHA-256 equal at both ends: {received[:16]}…", held=sent == received)

    def refusals(self) -> None:
        """4. Refusals, as the client prints them"""
        cases = (
            ("a wrong token", "solo", "bp_wrong", grpc.StatusCode.UNAUTHENTICATED),
            ("an unknown satellite", "nowhere", None, grpc.StatusCode.NOT_FOUND),
            ("a satellite that cannot start", "broken", None, grpc.StatusCode.UNAVAILABLE),
        )
        for what, satellite, token, expected in cases:
            with DemoClient(self._host, satellite, token) as client:
                try:
                    client.echo(b"hello")
                except grpc.RpcError as exc:
                    self.say(f"{what}:")
                    self.say(f"  {exc.code()}: {exc.details()}")
                    self.expect(f"{expected.name}", held=exc.code() is expected)
                else:
                    raise PromiseBroken(f"{what} was answered")

    def killed(self) -> None:
        """5. kill -9 of the daemon: one client streams, another waits for its satellite"""
        with (
            concurrent.futures.ThreadPoolExecutor(1) as threads,
            DemoClient(self._host, "stream") as streaming,
            DemoClient(self._host, "late") as waiting,
        ):
            streaming.echo(b"wake up first")
            stream = threads.submit(streaming.download, 2 * STREAM_BYTES)
            answer = waiting.echo_future(b"hello")
            # Not only STARTING: a daemon that dies before the keeper has heard of it leaves the start to the next one.
            self._host.wait_process("late", SLEEP_DEADLINE_S)
            self.expect("both are under way when the daemon is killed", held=not (stream.done() or answer.done()))
            away_s = timed_s(self._host.kill_and_start)
            self.say(
                f"the next daemon took clients after {away_s:.2f} s; the connections are in a process of their own"
            )
            sent, received = stream.result()
            self.expect(f"the stream went on, SHA-256 equal at both ends: {received[:16]}…", held=sent == received)
            self.expect("the other client waited on, and was answered", held=answer.result() == b"hello")
            self.expect(
                "its satellite was started once: the next daemon found it again", held=self._host.found_again("late")
            )

    def sleep_and_resume(self) -> None:
        """6. Nobody there: the satellite goes to sleep, and resumes for the next client"""
        begun = time.monotonic()
        self._host.wait_state("solo", SatelliteState.SLEEP, SLEEP_DEADLINE_S)
        self.say(f"asleep ({time.monotonic() - begun:.1f} s after this act began; sleep_after is {SLEEP_AFTER_S:g} s)")
        with DemoClient(self._host, "solo") as client:
            resumed_s = timed_s(lambda: client.echo(b"again"))
        self.say(f"first answer after {resumed_s:.3f} s: resumed from memory, not booted")
        self.expect("woken a second time, for this client", held=self._host.starts("solo") == 2)
        self._host.wait_state("solo", SatelliteState.SLEEP, SLEEP_DEADLINE_S)


def run_demo() -> int:
    """Run the demo with local processes. Returns 0 if every promise held, else 1."""
    console = wide_console()
    with EdgeHost(SATELLITES, sleep_after_s=SLEEP_AFTER_S, data_plane="process") as host:
        console.print(f"bentpipe serves TLS on localhost:{host.port}; {len(SATELLITES)} satellites, all asleep")
        return play(host, console, [s.name for s in SATELLITES], Story(host, console).tell)
