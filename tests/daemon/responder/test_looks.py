"""What the looks make of a machine's files, and what they say if a file is missing, wrong or hangs."""

import os
import threading
from pathlib import Path

import pytest

from beds.fake_machine import FakeMachine
from bentpipe.daemon.responder.looks import Look, log_lines, uptime_s
from bentpipe.daemon.responder.machine import MAX_STEPS, BuildsLook, MachineLook, find_steps, read_text
from bentpipe.daemon.responder.network import NetworkLook, find_outgoing
from bentpipe.daemon.responder.wire import Fields
from bentpipe.proto import responder_pb2 as pb


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_machine(machine: FakeMachine) -> None:
    look = MachineLook(str(machine.root))
    look.look()
    found = pb.Machine.FromString(look.section(uptime_s()))
    assert found.look.HasField("age_ms")
    assert found.look.error == ""
    assert (found.memory_total_bytes, found.memory_available_bytes) == (4096 << 10, 1024 << 10)
    assert (found.swap_total_bytes, found.swap_free_bytes) == (8 << 10, 4 << 10)
    assert found.load1 == 1.5
    assert found.pressure.memory.some.avg10_percent == 12.5
    assert found.pressure.io.full.total_us == 500


def test_builds(machine: FakeMachine) -> None:
    machine.step("buildkit/a", 100)
    machine.step("system.slice/buildkit/b", 100)
    machine.step("a/b/c/buildkit/d", 100)
    look = BuildsLook(str(machine.cgroup))
    look.look()
    found = pb.Builds.FromString(look.section(uptime_s()))
    assert found.look.error == ""
    assert found.cpu_usage_us == 123456
    assert (found.cpu_throttled_periods, found.cpu_throttled_us, found.cpu_limit_percent) == (3, 77, 190)
    assert (found.memory_bytes, found.memory_limit_bytes) == (1 << 30, 1 << 30)
    assert found.pids == 17
    assert not found.HasField("pids_limit")
    assert found.steps == 3


def test_a_limit_that_is_not_set_and_files_that_the_root_has_not(machine: FakeMachine) -> None:
    machine.limit("cpu.max", "max 100000\n")
    for name in ("memory.current", "memory.max", "pids.current", "pids.max", "io.pressure"):
        (machine.cgroup / name).unlink()
    look = BuildsLook(str(machine.cgroup))
    look.look()
    found = pb.Builds.FromString(look.section(uptime_s()))
    assert found.look.error == ""
    for name in ("cpu_limit_percent", "memory_bytes", "memory_limit_bytes", "pids", "pids_limit"):
        assert not found.HasField(name)
    assert found.pressure.HasField("cpu")
    assert not found.pressure.HasField("io")


@pytest.mark.parametrize(
    "text", ["", "some", "some avg10=x total=1", "some avg10=1.0", "none avg10=1.0 total=1", "\0\xff"]
)
def test_pressure_that_is_wrong_is_an_error_and_the_last_result_stays(machine: FakeMachine, text: str) -> None:
    look = MachineLook(str(machine.root))
    look.look()
    machine.write("proc/pressure/cpu", text or "some avg10=1.0 total=-")
    look.look()
    found = pb.Machine.FromString(look.section(uptime_s()))
    assert found.look.error
    assert found.memory_total_bytes == 4096 << 10


def test_a_look_that_hangs_is_told_with_its_last_result() -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    class Hanging(Look[int]):
        name = "hanging"
        deadline_s = 0.0

        def read(self) -> int:
            begun.set()
            may_go_on.wait()
            return 7

        def fields(self, result: int, now: float) -> Fields:
            return [(2, result)]

    look = Hanging()
    thread = threading.Thread(target=look.look)
    thread.start()
    begun.wait()
    assert "no look has been made" not in look.state(uptime_s() + 61)
    assert pb.BuildKit.FromString(look.section(uptime_s() + 61)).look.error == "the look has run for 61 s"
    may_go_on.set()
    thread.join()
    found = pb.BuildKit.FromString(look.section(uptime_s() + 5))
    assert (found.look.error, found.running_count) == ("", 7)
    assert found.look.age_ms >= 5000


def test_an_error_is_logged_once_and_again_if_it_changes() -> None:
    errors = iter(["one", "one", "two", "", "two"])

    class Failing(Look[int]):
        name = "failing"

        def read(self) -> int:
            if error := next(errors):
                raise OSError(error)
            return 1

        def fields(self, _result: int, _now: float) -> Fields:
            return []

    log_lines.clear()
    look = Failing()
    for _ in range(5):
        look.look()
    assert list(log_lines) == [f"<4>failing: OSError: {error}\n" for error in ("one", "two", "two")]


def test_the_age_is_of_the_last_success() -> None:
    class Good(Look[int]):
        def read(self) -> int:
            return 1

        def fields(self, _result: int, _now: float) -> Fields:
            return []

    look = Good()
    assert look.age_s(uptime_s()) is None
    look.look()
    age_s = look.age_s(uptime_s() + 100)
    assert age_s is not None
    assert 100 <= age_s < 160


def test_steps_are_bounded(tmp_path: Path) -> None:
    for number in range(MAX_STEPS + 10):
        (tmp_path / "buildkit" / str(number)).mkdir(parents=True)
    assert len(list(find_steps(str(tmp_path)))) == MAX_STEPS


def test_steps_below_a_deep_and_wide_tree_end(tmp_path: Path) -> None:
    """A step of `security.insecure` may make cgroups at will."""
    deep = tmp_path.joinpath(*["d"] * 200)
    deep.mkdir(parents=True)
    for number in range(5000):
        (tmp_path / f"w{number}").mkdir()
    assert list(find_steps(str(tmp_path))) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "buildkit").mkdir()
    (tmp_path / "buildkit" / "out").symlink_to("/")
    assert list(find_steps(str(tmp_path))) == []


def test_a_large_file_is_cut(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 10_000)
    assert len(read_text(str(tmp_path / "large"), 1000)) == 1000


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(local: str, remote: str, state: str) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"


def test_connections_of_a_table() -> None:
    text = HEAD + line("0100007F:1F90", "00000000:0000", "0A") + line("0A00000A:C000", "08080808:01BB", "01")
    text += line("0A00000A:C001", "0100007F:1F90", "01") + line("0A00000A:C002", "08080808:01BB", "06") + "  cut off"
    found, ports = find_outgoing("net:[1]", text)
    assert found == [("net:[1]", "0A00000A:C000", "08080808:01BB")]
    assert ports == {"1F90"}


def network(machine: FakeMachine, processes: dict[str, tuple[str, str]]) -> NetworkLook:
    """`processes`: for each one its namespace and its tables' lines. `self` is the responder's own."""
    for name, (namespace, lines) in processes.items():
        folder = machine.root / "proc" / name / "ns"
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "net"
        if not link.is_symlink():
            link.symlink_to(namespace)
        machine.write(f"proc/{name}/net/tcp", HEAD + lines)
    return NetworkLook(str(machine.root), str(machine.cgroup))


def test_connections_by_namespace_and_age(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    outgoing, incoming = line("0A00000A:C000", "08080808:01BB", "01"), line("0A00000A:1F90", "09090909:FFFF", "01")
    listening = line("00000000:1F90", "00000000:0000", "0A")
    inside = line("0A00000B:C000", "08080808:01BB", "01")
    machine.step("buildkit/a", 1)
    machine.limit("buildkit/a/cgroup.procs", "71\n72\n73\n")
    processes = {
        "self": ("net:[1]", outgoing + incoming + listening),
        "71": ("net:[2]", inside),
        "72": ("net:[2]", inside),  # the same namespace is counted once; 73 has ended
    }
    look = network(machine, processes)
    clock = [1000.0]
    monkeypatch.setattr("bentpipe.daemon.responder.network.uptime_s", lambda: clock[0])
    look.look()
    assert look.error == ""
    found = pb.Network.FromString(look.section(uptime_s()))
    assert (found.under_1m, found.under_10m, found.under_1h, found.over_1h, found.more) == (2, 0, 0, 0, False)
    for passed_s, expected in ((61, (0, 2, 0, 0)), (601, (0, 0, 2, 0)), (3601, (0, 0, 0, 2))):
        clock[0] = 1000.0 + passed_s
        look.look()
        found = pb.Network.FromString(look.section(uptime_s()))
        assert (found.under_1m, found.under_10m, found.under_1h, found.over_1h) == expected
    machine.write("proc/71/net/tcp", HEAD)
    look.look()
    assert pb.Network.FromString(look.section(uptime_s())).over_1h == 1


def test_connections_are_bounded(machine: FakeMachine) -> None:
    lines = "".join(line(f"0A00000A:{number:04X}", "08080808:01BB", "01") for number in range(5000))
    look = network(machine, {"self": ("net:[1]", lines)})
    look.look()
    found = pb.Network.FromString(look.section(uptime_s()))
    assert (found.under_1m, found.more) == (4096, True)


def test_the_real_machine() -> None:
    look = MachineLook("/")
    look.look()
    assert look.error == ""
    assert pb.Machine.FromString(look.section(uptime_s())).memory_total_bytes == os.sysconf(
        "SC_PHYS_PAGES"
    ) * os.sysconf("SC_PAGE_SIZE")
