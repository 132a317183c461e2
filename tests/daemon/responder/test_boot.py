"""What the responder tells of the phases of its machine's boot."""

import json
import os
import time
from pathlib import Path

import pytest

from bentpipe.daemon.responder.boot import CLOUD_INIT_RESULT, SYSTEMCTL_TRIES, BootLook
from bentpipe.daemon.responder.buildkit import BuildKitLook, Running
from bentpipe.daemon.responder.looks import uptime_s
from bentpipe.proto import responder_pb2 as pb

SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$0.asked"
{answer}
"""
TOLD = "echo 8384260"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path


def systemctl(root: Path, answer: str = TOLD) -> str:
    """A program in the place of systemd's own, which answers only where systemd runs."""
    path = root / "systemctl"
    path.write_text(SYSTEMCTL.format(answer=answer))
    path.chmod(0o755)
    return str(path)


def asked(root: Path) -> list[str]:
    path = root / "systemctl.asked"
    return path.read_text().splitlines() if path.exists() else []


def looked(look: BootLook) -> pb.Boot:
    look.look()
    return pb.Boot.FromString(look.section(uptime_s()))


def cloud_init(root: Path, ago_s: float) -> None:
    path = root / CLOUD_INIT_RESULT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({}))
    at = time.time() - ago_s
    os.utime(path, (at, at))


def test_phases_are_told_as_they_end(root: Path) -> None:
    buildkit = BuildKitLook("/none")
    look = BootLook(str(root), buildkit, systemctl(root))
    found = looked(look)
    assert found.look.error == ""
    assert found.init_ms == 8384
    assert not any(found.HasField(each) for each in ("cloud_init_ms", "buildkit_ms", "first_build_ms"))
    cloud_init(root, 2.0)
    assert looked(look).cloud_init_ms == pytest.approx((uptime_s() - 2.0) * 1e3, abs=5000)
    buildkit.result, buildkit.done_at = Running(), 7.5
    assert looked(look).buildkit_ms == 7500
    buildkit.done_at = 99.0
    assert looked(look).buildkit_ms == 7500, "the first answer counts"
    assert not looked(look).HasField("first_build_ms")
    buildkit.result.count = 2
    assert not looked(look).HasField("first_build_ms")
    buildkit.result.count = 0
    first = looked(look)
    assert first.first_build_ms == pytest.approx(uptime_s() * 1e3, abs=60_000)
    buildkit.result.count = 1
    looked(look)
    buildkit.result.count = 0
    assert looked(look).first_build_ms == first.first_build_ms


@pytest.mark.parametrize("ago_s", [-1e6, 1e9], ids=["future", "before the boot"])
def test_a_result_of_another_boot_is_not_told(root: Path, ago_s: float) -> None:
    cloud_init(root, ago_s)
    assert not looked(BootLook(str(root), BuildKitLook("/none"))).HasField("cloud_init_ms")


def test_systemd_is_asked_once(root: Path) -> None:
    look = BootLook(str(root), BuildKitLook("/none"), systemctl(root))
    for _ in range(3):
        looked(look)
    assert asked(root) == ["show --property=UserspaceTimestampMonotonic --value"]


@pytest.mark.parametrize("answer", ["exit 1", "echo", "echo soon"])
def test_a_systemd_that_does_not_say_is_not_asked_for_ever(root: Path, answer: str) -> None:
    look = BootLook(str(root), BuildKitLook("/none"), systemctl(root, answer))
    for _ in range(SYSTEMCTL_TRIES + 3):
        found = looked(look)
    assert not found.HasField("init_ms")
    assert found.look.error == "", "the other phases are told"
    assert len(asked(root)) == SYSTEMCTL_TRIES


def test_without_systemd_it_is_not_asked(tmp_path: Path) -> None:
    found = looked(BootLook(str(tmp_path), BuildKitLook("/none"), systemctl(tmp_path)))
    assert not found.HasField("init_ms")
    assert asked(tmp_path) == []
