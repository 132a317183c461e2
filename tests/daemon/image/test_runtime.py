"""What BuildKit runs instead of runc, as a program with a runc that is a script."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bentpipe.daemon.image.programs import runtime
from bentpipe.daemon.image.programs.settings import SETTINGS

SOURCE = Path(runtime.__file__)
RUNC = """#!/bin/sh
echo "$0 $@" >> {log}
cat /proc/self/oom_score_adj >> {log}
for word in "$@"; do [ "$word" = run ] && {run}; done
exit 0
"""
STEP = {"process": {"args": ["make"]}, "linux": {"cgroupsPath": "/buildkit/abc", "resources": {"pids": {"limit": 9}}}}


class Satellite:
    """A machine's files in a folder, for which the program is changed."""

    def __init__(self, folder: Path, flavour: str, run: str = "exit 0") -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        self.write_spec(json.dumps(STEP))
        self.events = folder / "cgroup/buildkit/abc/memory.events"
        self.events.parent.mkdir(parents=True)
        self.events.write_text("low 0\noom 0\noom_kill 0\n")
        runc = folder / "runc"
        runc.write_text(RUNC.format(log=self.log, run=run))
        runc.chmod(0o755)
        settings = folder / "satellite.json"
        settings.write_text(json.dumps({"programs": str(folder / "none"), "runc": str(runc), "flavour": flavour}))
        text = (
            SOURCE.read_text()
            .replace(runtime.SETTINGS, str(settings))
            .replace(f'"{runtime.CGROUPS}"', f'"{folder}/cgroup"')
        )
        self.program = folder / "runtime"
        self.program.write_text(text)

    def write_spec(self, text: str) -> None:
        (self.bundle / "config.json").write_text(text)

    @property
    def spec(self) -> dict[str, dict[str, object]]:
        read: dict[str, dict[str, object]] = json.loads((self.bundle / "config.json").read_text())
        return read

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-IS", str(self.program), *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, str]:
        with self.start(*arguments) as process:
            _, errors = process.communicate(timeout=30)
            return process.returncode, errors

    def run_step(self) -> tuple[int, str]:
        return self.run("--log", "x.json", "run", "--bundle", str(self.bundle), "abc")


@pytest.mark.parametrize("flavour", ["moby", "earthly"])
def test_a_step_has_no_protection_and_ends_as_a_whole(flavour: str, tmp_path: Path) -> None:
    satellite = Satellite(tmp_path, flavour)
    assert satellite.run_step() == (0, "")
    assert satellite.spec["process"]["oomScoreAdj"] == runtime.STEP_SCORE
    assert satellite.spec["linux"]["resources"] == {"pids": {"limit": 9}, "unified": {"memory.oom.group": "1"}}
    assert satellite.spec["linux"]["cgroupsPath"] == "/buildkit/abc"
    lines = satellite.log.read_text().splitlines()
    assert lines[1] == "0", "runc itself is not protected as BuildKit is"


def test_moby_gets_runc_itself(tmp_path: Path) -> None:
    satellite = Satellite(tmp_path, "moby", run="exit 7")
    assert satellite.run_step() == (7, "")
    assert satellite.log.read_text().startswith(f"{tmp_path}/runc --log x.json run --bundle {satellite.bundle} abc\n")


def test_other_commands_pass_unchanged(tmp_path: Path) -> None:
    satellite = Satellite(tmp_path, "earthly")
    for command in (["kill", "abc", "KILL"], ["delete", "abc"], ["state", "abc"], ["--version"]):
        assert satellite.run(*command) == (0, "")
        assert satellite.log.read_text().splitlines()[-2] == f"{tmp_path}/runc {' '.join(command)}"
    assert satellite.spec == STEP


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"process": null}', '{"process": {}, "linux": {"resources": []}}'])
def test_a_step_that_cannot_be_changed_does_not_run(text: str, tmp_path: Path) -> None:
    satellite = Satellite(tmp_path, "moby")
    satellite.write_spec(text)
    code, errors = satellite.run_step()
    assert code == 1
    assert errors.startswith("bentpipe: cannot run this step: ")
    assert satellite.log.read_text() == ""


def test_the_forks_client_reads_that_memory_ran_out(tmp_path: Path) -> None:
    satellite = Satellite(tmp_path, "earthly", run="exit 137")
    satellite.events.write_text("oom 1\noom_kill 3\n")
    assert satellite.run_step() == (137, runtime.OUT_OF_MEMORY)
    calls = [line for line in satellite.log.read_text().splitlines() if "runc" in line]
    assert calls[0].endswith(f" run --keep --bundle {satellite.bundle} abc")
    assert calls[1].endswith(" --log x.json delete --force abc"), "the container is not left behind"


@pytest.mark.parametrize(("end", "code"), [("exit 137", 137), ("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)])
def test_the_fork_sees_every_other_end_as_it_was(end: str, code: int, tmp_path: Path) -> None:
    assert Satellite(tmp_path, "earthly", run=end).run_step()[0] == code


def test_a_runc_that_is_killed_is_a_lack_of_memory_too(tmp_path: Path) -> None:
    """The responder kills it if builds stall on memory."""
    satellite = Satellite(tmp_path, "earthly", run="kill -KILL $$")
    assert satellite.run_step() == (137, runtime.OUT_OF_MEMORY)


def test_a_step_that_handles_a_kill_of_its_child_has_not_run_out(tmp_path: Path) -> None:
    satellite = Satellite(tmp_path, "earthly", run="exit 0")
    satellite.events.write_text("oom_kill 3\n")
    assert satellite.run_step()[0] == 0


def test_runc_dies_with_the_program_beside_it(tmp_path: Path) -> None:
    satellite = Satellite(tmp_path, "earthly", run=f"echo $$ > {tmp_path}/pid; exec sleep 60")
    pid = tmp_path / "pid"
    with satellite.start("run", "--bundle", str(satellite.bundle), "abc") as process:
        deadline = time.monotonic() + 30
        while not (pid.exists() and pid.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    child = Path(f"/proc/{pid.read_text().strip()}")
    while child.exists() and "Z" not in (child / "stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_has_the_same_settings_as_the_other_programs() -> None:
    """It is a file of its own, so it cannot import the place."""
    assert str(SETTINGS) == runtime.SETTINGS


def test_the_bundle_is_found_in_each_way_of_writing_it() -> None:
    assert runtime.bundle_of(["run", "--bundle=/x", "a"]) == "/x"
    assert runtime.bundle_of(["--root", "/r", "create", "-b", "/x", "a"]) == "/x"
    assert runtime.bundle_of(["exec", "--bundle", "/x"]) is None
    assert runtime.bundle_of(["run", "a"]) is None
