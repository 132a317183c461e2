"""`bentpipe doctor --satellite`: a satellite that is as rendered has no fault, and each fault is told with its remedy."""

import contextlib
import datetime
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from beds.machines.satellite_tree import BUILDKIT_MOUNTS, CACHE_DISK, DISK, MOUNTS, PID, STAT, SYSTEMCTL, SatelliteTree
from beds.tls_pairs import machine as machine_identity
from bentpipe.daemon.image.places import IDENTITY
from bentpipe.daemon.image.programs import doctor
from bentpipe.daemon.image.programs.findings import Finding, Severity
from bentpipe.daemon.image.programs.looks import SatelliteLook
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import MachineName, new_authority

EMPTY_SETTINGS_FRAME = bytes(3) + b"\x04" + bytes(5)


def leave_free(monkeypatch: pytest.MonkeyPatch, percent: int) -> None:
    """Whatever the disk under the tests has."""
    seen = os.statvfs

    def statvfs(path: str | Path) -> os.statvfs_result:
        bsize, frsize, blocks, _, _, *rest = seen(path)
        free = blocks * percent // 100
        return os.statvfs_result((bsize, frsize, blocks, free, free, *rest))

    monkeypatch.setattr(os, "statvfs", statvfs)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SatelliteTree:
    tree = SatelliteTree(tmp_path)
    monkeypatch.setenv("PATH", f"{tree.bin}:{os.environ['PATH']}")
    leave_free(monkeypatch, 50)
    return tree


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listener that serves one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                with client:
                    answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def say_settings(client: socket.socket) -> None:
    client.recv(64)
    client.sendall(EMPTY_SETTINGS_FRAME)


def told_port(tree: SatelliteTree, port: int, certificate: str = "") -> None:
    tree.write("etc/bentpipe/responder.json", json.dumps({"listen": f"[::]:{port}", "certificate": certificate}))


def examine(tree: SatelliteTree) -> list[Finding]:
    return list(doctor.findings(SatelliteLook(tree.settings, tree.root)))


def faults(tree: SatelliteTree, severity: Severity = Severity.FAIL) -> list[str]:
    return [each.subject for each in examine(tree) if each.severity is severity]


def test_a_satellite_as_rendered_has_no_fault(tree: SatelliteTree) -> None:
    with answering(say_settings) as port:
        told_port(tree, port)
        found = examine(tree)
    assert [str(each) for each in found if each.severity is Severity.FAIL] == []
    assert [each.subject for each in found if each.severity is Severity.WARN] == ["responder's answer"], "plaintext"
    assert {"CPU limit", "steps' world", "garbage collection", "I/O of nvme1n1"} <= {each.subject for each in found}


def test_tls_is_an_answer_too(tree: SatelliteTree, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("satellite.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(context)
    with answering(lambda client: context.wrap_socket(client, server_side=True).close()) as port:
        told_port(tree, port, "/etc/bentpipe/tls/identity.pem")
        [answer] = [each for each in examine(tree) if each.subject == "responder's answer"]
    assert (answer.severity, answer.seen) == (Severity.OK, f"TLSv1.3 at port {port}")


def _identity(tree: SatelliteTree, days: float) -> None:
    now = datetime.datetime.now(datetime.UTC)
    made_at, life_s = now - datetime.timedelta(days=10), (days + 10) * 86_400
    made = machine_identity(tree.root / "made", new_authority("test", now), NAME, now, life_s, made_at=made_at)
    tree.write(IDENTITY.lstrip("/"), made.file.read_text())
    (tree.root / IDENTITY.lstrip("/")).chmod(0o600)


NAME = MachineName("test", SatelliteKey("acme", "one"), "1" * 64)


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [
        (60.5, Severity.OK, "for another 60 days"),
        (3.0, Severity.WARN, "was not renewed"),
        (-2.0, Severity.FAIL, "ended 2 days ago"),
    ],
)
def test_the_certificate_is_looked_at(tree: SatelliteTree, days: float, severity: Severity, words: str) -> None:
    told_port(tree, 1, IDENTITY)
    _identity(tree, days)
    [found] = [each for each in examine(tree) if each.subject == "certificate"]
    assert found.severity is severity
    assert words in found.seen


def test_a_certificate_that_cannot_serve_is_told(tree: SatelliteTree) -> None:
    told_port(tree, 1, IDENTITY)
    assert "is not there" in _certificate_words(tree)
    _identity(tree, 60.0)
    path = tree.root / IDENTITY.lstrip("/")
    path.chmod(0o644)
    assert "others may read it" in _certificate_words(tree)
    path.write_text("spoiled")
    assert "cannot be used" in _certificate_words(tree)
    told_port(tree, 1)
    assert _certificate_words(tree) == "", "the machine is rendered without TLS"


def _certificate_words(tree: SatelliteTree) -> str:
    return "; ".join(each.seen for each in examine(tree) if each.subject == "certificate")


CGROUPS = "sys/fs/cgroup/"
STEPS = f"{CGROUPS}builds.slice/buildkitd.service/steps/"


@pytest.mark.parametrize(
    ("name", "text", "subject"),
    [
        ("proc/self/mountinfo", MOUNTS.replace("cgroup2 cgroup2", "cgroup cgroup"), "cgroups"),
        ("proc/self/mountinfo", MOUNTS.replace("/var/lib/bentpipe/cache", "/mnt"), "cache"),
        ("proc/self/mountinfo", MOUNTS.replace(f"23 20 {CACHE_DISK}", f"23 20 {DISK}"), "cache"),
        (f"proc/{PID}/mountinfo", MOUNTS, "steps' world"),
        (f"proc/{PID}/oom_score_adj", "0\n", "BuildKit's protection"),
        (f"{CGROUPS}builds.slice/cpu.max", "max 100000", "CPU limit"),
        (f"{CGROUPS}builds.slice/cpu.max", "95000 100000", "CPU limit"),
        (f"{CGROUPS}builds.slice/memory.max", "max", "memory limit"),
        (f"{CGROUPS}builds.slice/memory.high", "1000000", "memory.high"),
        (f"{CGROUPS}builds.slice/pids.max", "4096", "pids over BuildKit"),
        (f"{STEPS}memory.max", "max", "builds' memory"),
        (f"{STEPS}pids.max", "max", "builds' processes"),
        (f"{CGROUPS}builds.slice/buildkitd.service/daemon/cgroup.procs", "999", "BuildKit's cgroup"),
        (f"{CGROUPS}responder.slice/memory.min", "0", "responder's memory"),
        ("proc/swaps", "h\n/swap file 8 0 -2\n/dev/zram0 partition 8 0 100\n", "swap"),
        ("run/bentpipe/buildkitd.toml", 'binary = "/usr/bin/runc"\n', "runtime"),
        ("opt/buildkit/buildctl", "#!/bin/sh\nexit 1\n", "garbage collection"),
        ("usr/local/lib/bentpipe/runtime", "#!/bin/sh\n# Of another version.\n", "programs"),
        ("etc/bentpipe/programs.sha256", "", "programs"),
        (
            "run/bentpipe/buildkitd.toml",
            'binary = "/usr/local/lib/bentpipe/runtime"\ncniBinaryPath = "/none"\n',
            "CNI plug-ins",
        ),
        ("opt/buildkit/buildctl", f"#!/bin/sh\necho '{SatelliteTree.workers(0)}'\n", "garbage collection"),
        ("bin/systemctl", SYSTEMCTL.replace("IPAddressDeny", "Nothing"), "metadata service"),
    ],
)
def test_each_fault_is_told(name: str, text: str, subject: str, tree: SatelliteTree) -> None:
    tree.write(name, text)
    found = [each for each in examine(tree) if each.severity is Severity.FAIL and each.subject != "responder's answer"]
    assert [each.subject for each in found] == [subject]
    assert all(each.remedy for each in found)


@pytest.mark.parametrize(
    ("name", "text", "subject"),
    [
        ("proc/self/mountinfo", MOUNTS.replace("nsdelegate,", ""), "cgroups"),
        ("proc/sys/vm/swappiness", "60\n", "swappiness"),
        ("proc/swaps", "h\n/swap file 1000 900 -2\n", "swap"),
        ("sys/power/state", "freeze mem\n", "hibernation"),
        ("bin/systemctl", SYSTEMCTL.replace("enabled", "disabled"), "hibernation"),
        (f"{CGROUPS}responder.slice/io.latency", f"{DISK} target=50000\n", "I/O of nvme1n1"),
        (f"proc/{PID}/stat", STAT.format(priority=0, policy=0), "responder's priority"),
        (f"proc/{PID}/stat", "", "responder's priority"),
    ],
)
def test_what_could_be_better_is_told(name: str, text: str, subject: str, tree: SatelliteTree) -> None:
    tree.write(name, text)
    assert faults(tree, Severity.WARN) == [subject]


def test_a_disk_with_little_room_is_told(tree: SatelliteTree, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, 4)
    assert faults(tree, Severity.WARN) == ["databases"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (f"{CGROUPS}builds.slice/io.max", f"{CACHE_DISK} rbps=1 wbps=1\n", "io.max"),
        (f"{CGROUPS}io.cost.qos", f"{CACHE_DISK} enable=1 ctrl=auto\n", "iocost"),
        ("sys/class/block/nvme1n1/queue/scheduler", "mq-deadline [bfq]\n", "BFQ"),
    ],
)
def test_it_says_which_limit_of_io_holds(name: str, text: str, words: str, tree: SatelliteTree) -> None:
    (tree.root / CGROUPS / "responder.slice/io.latency").unlink()
    tree.write(name, text)
    found = {each.subject: each for each in examine(tree)}
    assert found["I/O of nvme1n1"].severity is Severity.OK
    assert words in found["I/O of nvme1n1"].seen
    assert "no io.latency" in found["I/O of nvme0n1"].seen


def test_it_says_which_policy_the_responder_has(tree: SatelliteTree) -> None:
    assert _priority(tree) == "SCHED_RR 20"
    tree.write(f"proc/{PID}/stat", STAT.format(priority=0, policy=0))
    assert _priority(tree) == "SCHED_OTHER"
    tree.write(f"proc/{PID}/stat", STAT.format(priority=0, policy=6))
    assert _priority(tree) == "policy 6"


def _priority(tree: SatelliteTree) -> str:
    [found] = [each.seen for each in examine(tree) if each.subject == "responder's priority"]
    return found


def test_a_buildkit_that_does_not_run_is_told_with_where_to_look(tree: SatelliteTree) -> None:
    tree.write("bin/systemctl", SYSTEMCTL.replace("active", "failed"))
    found = {each.subject: each for each in examine(tree)}
    assert found["BuildKit"].severity is Severity.FAIL
    assert "journalctl" in found["BuildKit"].remedy
    assert found["responder"].severity is Severity.FAIL


def test_what_listens_in_the_responders_place_is_told(tree: SatelliteTree) -> None:
    with answering(lambda client: client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as port:
        told_port(tree, port)
        assert "responder's answer" in faults(tree)


def test_the_mount_of_buildkit_that_counts_is_the_newest(tree: SatelliteTree) -> None:
    tree.write(f"proc/{PID}/mountinfo", "\n".join(reversed(BUILDKIT_MOUNTS.splitlines())))
    assert "steps' world" in faults(tree)


@pytest.mark.skipif(Path("/etc/bentpipe/satellite.json").exists(), reason="this machine is a satellite")
def test_a_machine_that_is_not_a_satellite_is_told_so() -> None:
    bentpipe = Path(sys.executable).with_name("bentpipe")
    done = subprocess.run([bentpipe, "doctor", "--satellite"], capture_output=True, text=True, check=False)
    assert done.returncode == doctor.EXIT_NO_SATELLITE
    assert "not a satellite" in done.stderr
