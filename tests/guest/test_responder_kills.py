"""The responder under a real kernel with cgroup v2: what it counts, whom it ends, and whom it leaves alone."""

import json
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from beds.guest.image import guest_image
from beds.guest.machine import Guest
from beds.peers.builds import Missing
from beds.peers.responder_process import CALL_DEADLINE_S, STATUS
from bentpipe.daemon.responder.bundle import bundle
from bentpipe.proto.responder_pb2 import GetStatusRequest, Kill, Status

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

PORT = 9571
LIMIT_MIB = 200
PROGRAM = "/usr/local/lib/bentpipe/responder.py"
SETTINGS = {
    "listen": f"0.0.0.0:{PORT}",
    "builds_cgroup": "builds",
    "cache": "/var",
    "prune_below_percent": 0,
    # The guest's disk is the host's memory, so a stall on it is short: 28 % was measured.
    "memory_stall_percent": 8,
    "memory_stall_s": 10,
}
DEADLINE_S = 120.0

PREPARE = """
cd /sys/fs/cgroup
echo '+cpu +memory +io +pids' >cgroup.subtree_control
for folder in builds builds/buildkit; do
    mkdir -p $folder
    echo '+cpu +memory +io +pids' >$folder/cgroup.subtree_control
done
echo ${1}M >builds/memory.max
systemd-run --unit=responder --property=Type=notify --property=WatchdogSec=10 --property=LimitMEMLOCK=infinity \
    /usr/bin/python3 -I -S "$2" /etc/bentpipe/responder.json
"""

RUN = """
echo $3 >/proc/self/oom_score_adj
step=/sys/fs/cgroup/builds/buildkit/$1
mkdir $step
setsid sh -c 'echo $$ >'$step'/cgroup.procs; exec '"$2" >/var/$1.log 2>&1 &
"""

HOLDS_AND_READS = """
import mmap, os, random, sys, time
held = bytearray(int(sys.argv[1]) << 20)
for at in range(0, len(held), 4096):
    held[at] = 1
file = os.open("/var/read", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(file, 0, 150 << 20)
pages = mmap.mmap(file, 150 << 20)
while True:
    pages[random.randrange(150 << 8) << 12]
"""
"""Holds most of the limit, and lives in what is left: the kernel reclaims for ever, and its OOM killer never comes."""


class Satellite:
    """The guest with a responder and the cgroup of builds, without BuildKit: the tests are the steps."""

    def __init__(self, guest: Guest, channel: grpc.Channel) -> None:
        self._guest = guest
        self._ask = channel.unary_unary(
            STATUS, request_serializer=GetStatusRequest.SerializeToString, response_deserializer=Status.FromString
        )

    def status(self) -> Status:
        answer: Status = self._ask(GetStatusRequest(), timeout=CALL_DEADLINE_S, wait_for_ready=True)
        return answer

    def run(self, step: str, command: str, oom_score_adj: int = 300) -> None:
        """Run a step, by default with the score that our runtime gives it."""
        self._guest.run(RUN, step, command, str(oom_score_adj))

    def is_running(self, step: str) -> bool:
        return "populated 1" in self._guest.run(f"cat /sys/fs/cgroup/builds/buildkit/{step}/cgroup.events")

    def oom_kills(self, step: str) -> int:
        """What BuildKit reads to tell its client: executor_linux.go, detectOOM."""
        events = self._guest.run(f"cat /sys/fs/cgroup/builds/buildkit/{step}/memory.events")
        return int(events.partition("oom_kill ")[2].split()[0])

    def end(self, step: str) -> None:
        self._guest.run(
            f"cd /sys/fs/cgroup/builds/buildkit/{step}; echo 1 >cgroup.kill; "
            "while grep -q 'populated 1' cgroup.events; do sleep 0.1; done; cd /; rmdir $OLDPWD"
        )

    def wait_for(self, condition: Callable[[Status], bool]) -> Status:
        deadline = time.monotonic() + DEADLINE_S
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, status
            time.sleep(1)
        return status


@pytest.fixture(scope="module")
def satellite() -> Iterator[Satellite]:
    try:
        image = guest_image()
    except Missing as exc:
        pytest.skip(str(exc))
    with Guest(image, [PORT]) as guest:
        guest.put(PROGRAM, bundle().encode())
        guest.put("/storm", image.storm.read_bytes(), 0o755)
        guest.put("/holds.py", HOLDS_AND_READS.encode())
        guest.put("/etc/bentpipe/responder.json", json.dumps(SETTINGS).encode())
        guest.run(PREPARE, str(LIMIT_MIB), PROGRAM)
        with grpc.insecure_channel(f"127.0.0.1:{guest.port(PORT)}") as channel:
            running = Satellite(guest, channel)
            running.wait_for(lambda status: status.kills.look.HasField("age_ms"))
            yield running


def test_what_it_reads(satellite: Satellite) -> None:
    status = satellite.wait_for(lambda status: status.builds.look.HasField("age_ms"))
    assert status.memory_locked
    assert status.builds.memory_limit_bytes == LIMIT_MIB << 20
    assert status.builds.HasField("pids")
    assert not status.builds.HasField("pids_limit")
    assert status.builds.pressure.memory.HasField("full")
    assert status.builds.look.error == ""


def test_the_kernel_s_kill_is_told_with_its_step(satellite: Satellite) -> None:
    before = satellite.status().kills
    satellite.run("hog", "/storm memory 60")
    status = satellite.wait_for(lambda status: len(status.kills.recent) > len(before.recent))
    last = status.kills.recent[-1]
    assert (last.cause, last.step) == (Kill.OOM, "hog")
    assert status.kills.machine_oom_kills > before.machine_oom_kills
    assert status.kills.pressure_kills == before.pressure_kills
    satellite.end("hog")


def test_a_step_that_reads_more_than_fits_is_left_alone(satellite: Satellite) -> None:
    before = satellite.status()
    satellite.run("reader", "/storm cache 60 /var 400")
    began = before.uptime_ms
    stalled = satellite.wait_for(lambda status: status.uptime_ms - began > 40_000)
    # It did stall: the killer's condition on time alone was met.
    assert stalled.builds.pressure.memory.full.total_us > before.builds.pressure.memory.full.total_us + 1_000_000
    assert satellite.is_running("reader")
    assert stalled.kills.pressure_kills == before.kills.pressure_kills
    satellite.end("reader")


@pytest.mark.parametrize(
    ("command", "oom_score_adj"),
    [
        pytest.param("python3 /holds.py 175", 300, id="reclaims"),
        # As a step inherits it from a buildkitd that the kernel must not kill. It finds no process that it may kill, and
        # lets the step try again for ever.
        pytest.param("/storm memory 600", -1000, id="protected"),
    ],
)
def test_a_step_that_holds_the_memory_and_stalls_is_ended_as_out_of_memory(
    satellite: Satellite, command: str, oom_score_adj: int
) -> None:
    before = satellite.status()
    # Protected as well: at the builds' limit the kernel kills what it may, whichever step that is.
    satellite.run("small", "/storm burn 600 /var 1", oom_score_adj)
    satellite.run("stalled", command, oom_score_adj)
    status = satellite.wait_for(lambda status: status.kills.pressure_kills > before.kills.pressure_kills)
    last = status.kills.recent[-1]
    assert (last.cause, last.step) == (Kill.PRESSURE, "stalled")
    assert last.memory_bytes > 100 << 20
    satellite.wait_for(lambda _: not satellite.is_running("stalled"))
    # BuildKit reads it as "cannot allocate memory", and the kill is not counted a second time.
    assert satellite.oom_kills("stalled") > 0
    assert satellite.is_running("small")
    again = satellite.wait_for(lambda now: now.uptime_ms > status.uptime_ms + 3000)
    assert [each.number for each in again.kills.recent] == [each.number for each in status.kills.recent]
    satellite.end("small")
    satellite.end("stalled")
