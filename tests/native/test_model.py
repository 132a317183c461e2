"""The engine against a model: any schedule of chunks, slow readers, FIN, RST, cuts and faults of the kernel.

The driver (tests/native/driver) plays both peers of real TCP connections and checks every byte; the model below says
which end each connection must come to, and what must have arrived. The engine runs under ASan+UBSan and under TSan.
`make sanitize` runs it longer.
"""

import dataclasses
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import trustme
from hypothesis import HealthCheck, event, given, settings

from beds.driver_build import build_driver
from bentpipe.native.engine import EndReason

EXAMPLES = int(os.environ.get("BENTPIPE_EXAMPLES", "100"))
SHORT_CONNECTIONS = int(os.environ.get("BENTPIPE_SHORT_CONNECTIONS", "2000"))
CLIENT, SATELLITE = 0, 1
OPEN, CLEAN, RESET, TRUNCATED, OWN = range(5)
RESET_REASON = {CLIENT: EndReason.CLIENT_RESET, SATELLITE: EndReason.SATELLITE_RESET}
TRUNCATED_REASON = {CLIENT: EndReason.CLIENT_TRUNCATED, SATELLITE: EndReason.SATELLITE_TRUNCATED}
CONNECTIONS = 3
ENDING_CALLS = 4
"""Close_notify, and what OpenSSL says of its own accord."""


@dataclasses.dataclass(frozen=True)
class End:
    """One `end` line of the driver; indexed by side where there are two."""

    reason: EndReason
    moved: tuple[int, int]
    sent: tuple[int, int]
    received: tuple[int, int]
    ending: tuple[int, int]
    failed_mallocs: int


class Driver:
    """The program, fed line by line."""

    def __init__(self, arguments: list[str | Path], openssl_conf: Path | None) -> None:
        self._arguments = arguments
        self._environment = os.environ | ({} if openssl_conf is None else {"OPENSSL_CONF": str(openssl_conf)})
        self._process: subprocess.Popen[str] | None = None

    def ask(self, *lines: str) -> list[str]:
        """Send lines; the last one must be one that answers. Returns the answers to all that do."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self._environment
            )
        wanted = sum(line.startswith(("end", "check", "short", "unflow")) for line in lines)
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write("\n".join(lines) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        answers = [process.stdout.readline() for _ in range(wanted)]
        if "" in answers:
            self.close(expected=1)
        return answers

    def close(self, expected: int = 0) -> None:
        """End it. Raises AssertionError with its words unless it ended well and silently."""
        process, self._process = self._process, None
        if process is not None:
            _, words = process.communicate(timeout=120)
            assert (process.returncode, words) == (0, ""), words
            assert expected == 0

    @property
    def mode(self) -> str:
        """When it splices, and whether the kernel does TLS."""
        return str(self._arguments[1])

    def baseline(self) -> tuple[int, int]:
        """Check that nothing is left. Returns (descriptors without those of pooled pipes, bytes spliced so far)."""
        _, live, fds, pipes, spliced, _, _ = self.ask("check")[0].split()
        assert live == "0"
        return int(fds) - 2 * int(pipes), int(spliced)

    def calls(self) -> tuple[int, int]:
        """How often the engine has read bytes, and how often it has sent all that it wanted to."""
        *_, reads, whole_sends = self.ask("check")[0].split()
        return int(reads), int(whole_sends)


IN_GUEST = "BENTPIPE_GUEST" in os.environ
"""Under another kernel, which has TLS and is too slow for sanitizers: see test_guest.py."""


TLS12_CONF = """openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = limits
[limits]
MaxProtocol = TLSv1.2
"""
"""OpenSSL before 3.2 gives the kernel no receiving direction of TLS 1.3."""

GUEST_MODES = ["always+ktls", "auto+ktls", "always+ktls+rx"]
"""The last: TLS 1.2, and the kernel's receiving direction is spliced whatever the self-test says of one-slot pipes."""


@pytest.fixture(scope="module", params=["none"] if IN_GUEST else ["address,undefined", "thread"])
def sanitizer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=GUEST_MODES if IN_GUEST else ["off", "auto", "always"])
def driver(
    request: pytest.FixtureRequest, sanitizer: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Driver]:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "cert.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
    (folder / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    files = [folder / name for name in ("cert.pem", "key.pem", "ca.pem")]
    conf = folder / "openssl.cnf"
    conf.write_text(TLS12_CONF)
    made = Driver([build_driver(sanitizer), request.param, *files], conf if "+rx" in request.param else None)
    yield made
    made.close()


sides = st.sampled_from([CLIENT, SATELLITE])
sizes = st.one_of(st.integers(1, 100), st.integers(1, 70_000), st.integers(100_000, 600_000))
steps = st.one_of(
    st.builds("send {{}} {} {}".format, sides, sizes),
    st.builds("recv {{}} {} {}".format, sides, sizes),
    st.builds("pause {}".format, st.integers(0, 3000)),
    st.builds("update {{}} {}".format, sides),
    st.builds("{} {{}} {}".format, st.sampled_from(["fin", "fin", "cut", "rst"]), sides),
    st.just("abort {}"),
)
calm_steps = st.one_of(steps.filter(lambda step: step.startswith(("send", "recv", "pause", "fin", "update"))))


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[tuple[bool, bool], int, list[str]]]:
    """Up to CONNECTIONS connections: (TLS on each leg, window in bytes or 0, steps)."""
    return [
        (
            (draw(st.booleans()), draw(st.booleans())),
            draw(st.sampled_from([0, 4096, 65536])),
            draw(st.lists(draw(st.sampled_from([steps, calm_steps])), max_size=14)),
        )
        for _ in range(draw(st.integers(1, CONNECTIONS)))
    ]


def done(script: list[str], verb: str) -> list[int]:
    """The sides on which `verb` happened, in order."""
    return [int(step.split()[-1]) for step in script if step.startswith(verb)]


def judge(tls: tuple[bool, bool], script: list[str], end: End, memory_faults: bool) -> None:
    """The reference model: what the script allows, and nothing else."""
    resets = set(done(script, "rst"))
    closed = {CLIENT: "", SATELLITE: ""}
    for step in script:
        verb, *rest = step.split()
        if verb in ("fin", "cut", "rst"):
            side = int(rest[-1])
            closed[side] = closed[side] or verb
    cuts = {side for side in closed if closed[side] == "cut" and tls[side]}
    aborted = any(step.startswith("abort") for step in script)

    allowed: set[EndReason] = set()
    if aborted:
        allowed.add(EndReason.ABORTED)
    allowed |= {RESET_REASON[side] for side in resets}
    allowed |= {TRUNCATED_REASON[side] for side in cuts}
    if not cuts and all(closed[side] in ("fin", "cut") for side in resets):
        allowed.add(EndReason.CLOSED)
    if memory_faults:
        allowed.add(EndReason.NO_MEMORY)
    assert end.reason in allowed, (end, allowed)
    event(end.reason.name)

    for source, sink in ((CLIENT, SATELLITE), (SATELLITE, CLIENT)):
        assert end.received[sink] <= end.moved[source] <= end.sent[source], end
        if end.reason is EndReason.CLOSED and sink not in resets:
            assert end.received[sink] == end.sent[source], end
        if end.reason is TRUNCATED_REASON[source] and cuts == {source} and not resets and not end.sent[sink]:
            assert end.received[sink] == end.sent[source], end
    if end.reason is EndReason.CLOSED:
        assert all(end.ending[side] == CLEAN for side in (CLIENT, SATELLITE) if side not in resets), end


@given(
    connections=schedules(),
    order=st.randoms(use_true_random=False),
    calls=st.sampled_from([0, 50, 300]),
    memory=st.sampled_from([0, 0, 10]),
    tiny=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_schedule_ends_as_the_model_says(
    driver: Driver,
    connections: list[tuple[tuple[bool, bool], int, list[str]]],
    order: random.Random,
    calls: int,
    memory: int,
    tiny: bool,
    seed: int,
) -> None:
    fds, _ = driver.baseline()
    # Into a pipe of one slot such a kernel drops bytes, so here the shim must not pass one off as full-sized.
    tiny = tiny and "+rx" not in driver.mode
    lines = [f"faults {calls} {memory} {int(tiny)} {seed}"]
    pending = []
    for index, (tls, window, script) in enumerate(connections):
        lines.append(f"open {index} {int(tls[0])} {int(tls[1])} {window}")
        # New keys are what a kernel's TLS cannot take.
        pending.append([step.format(index) for step in script if not ("ktls" in driver.mode and "update" in step)])
    while any(pending):  # interleave, each connection's own order kept
        lines.append(order.choice([script for script in pending if script]).pop(0))
    lines += [f"end {index}" for index in range(len(connections))]
    for (tls, _, script), answer in zip(connections, driver.ask(*lines), strict=True):
        _, _, reason, *rest = answer.split()
        n = [int(each) for each in rest]
        end = End(EndReason(int(reason)), (n[0], n[1]), (n[2], n[3]), (n[4], n[5]), (n[6], n[7]), n[8])
        judge(tls, script, end, memory_faults=memory > 0)
    driver.ask("faults 0 0 0 1", "check")
    assert driver.baseline()[0] == fds


def test_a_stream_is_spliced_unless_that_is_off(driver: Driver) -> None:
    _, before = driver.baseline()
    transfer = [line for _ in range(20) for line in ("send 0 0 500000", "recv 0 1 500000")]
    driver.ask("faults 0 0 0 1", "open 0 0 0 0", *transfer, "end 0")
    _, after = driver.baseline()
    assert (after > before) == (driver.mode != "off")


def test_the_records_of_a_read_leave_by_one_send(driver: Driver) -> None:
    """A send that the socket takes in part does not count: the rest is a send of its own."""
    if "ktls" in driver.mode:
        pytest.skip("the kernel makes the records")
    transfer = [line for _ in range(20) for line in ("send 0 0 500000", "recv 0 1 500000")]
    driver.ask("faults 0 0 0 1", "check")
    reads, sends = driver.calls()
    driver.ask("open 0 0 1 0", *transfer, "end 0")
    reads_now, sends_now = driver.calls()
    assert sends_now - sends <= reads_now - reads + ENDING_CALLS


def test_no_memory_ends_a_connection_whose_other_direction_goes_on(driver: Driver) -> None:
    """The satellite sends without end and reads nothing; what is not to be kept for it ends both."""
    if driver.mode != "off":
        pytest.skip("a pipe would keep it")
    lines = ["faults 0 0 0 1", "open 0 0 0 4096", "flow 0 1", "mallocs 1000", "send 0 0 1000000", "unflow 0"]
    [answer] = driver.ask(*lines)
    driver.ask("mallocs 0", "check")
    assert EndReason(int(answer.split()[1])) is EndReason.NO_MEMORY


def test_many_short_connections_leave_nothing(driver: Driver) -> None:
    fds, _ = driver.baseline()
    driver.ask("faults 0 0 0 1", f"short {SHORT_CONNECTIONS}")
    assert driver.baseline()[0] == fds
