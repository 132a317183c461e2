"""What the responder tells of the phases of its machine's boot."""

import json
import os
import time
from pathlib import Path

import pytest

from bentpipe.daemon.responder.boot import CLOUD_INIT_RESULT, BootLook
from bentpipe.daemon.responder.buildkit import BuildKitLook, Running
from bentpipe.daemon.responder.looks import uptime_s
from bentpipe.proto import responder_pb2 as pb

STAT = "1 (a (very) strange name) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 1 2 3"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/stat").write_text(STAT.format(ticks=3 * os.sysconf("SC_CLK_TCK")))
    return tmp_path


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
    look = BootLook(str(root), buildkit)
    found = looked(look)
    assert found.look.error == ""
    assert found.init_ms == 3000
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


def test_without_proc_it_says_so(tmp_path: Path) -> None:
    found = looked(BootLook(str(tmp_path), BuildKitLook("/none")))
    assert found.look.error.startswith("FileNotFoundError")
    assert not found.look.HasField("age_ms")
