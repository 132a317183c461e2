"""`bentpipe init` as a new user runs it, and then the daemon from what it wrote, with clients that know only its output."""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.peers.builds import Missing, buildkit
from beds.peers.clients import CallError, GrpcioClient
from beds.programs import BENTPIPE
from bentpipe.config.load import load_config

HOST = "127.0.0.2"
"""An address of this machine that nobody takes for localhost."""
DEADLINE_S = 90.0
TWO_MINUTES_S = 120.0
"""What the README promises a new user, from `bentpipe init` to the end of a first build."""
TOKEN = re.compile(r"^    (bp_[0-9a-f]{64})$", re.MULTILINE)


def run(folder: Path, *arguments: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of bentpipe's in a directory, without what the tests' own environment may have of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EARTHLY_", "SSL_"))}
    return subprocess.run(
        [BENTPIPE, *arguments],
        cwd=folder,
        env={**environment, "PATH": path or os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def token_in(output: str) -> str:
    [token] = TOKEN.findall(output)
    return str(token)


def commands_with(folder: Path) -> list[str]:
    """Of the processes of this machine, those that name the folder in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (entry / "cmdline").read_bytes() and entry.name != str(os.getpid()):
                found.append((entry / "cmdline").read_text())
    return found


@contextlib.contextmanager
def serving(folder: Path, config: Path, path: str | None = None) -> Iterator[int]:
    """Run `bentpipe serve`. Yields the port of its first listener."""
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BENTPIPE, "serve", "--config", config],
            cwd="/",
            env={**os.environ, "PATH": path or os.environ["PATH"]},
            stderr=output,
        )
    try:
        until = time.monotonic() + DEADLINE_S
        while not (found := re.search(r"listening host=\S+ port=(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0, log.read_text()


def test_from_nothing_to_a_call_of_another_client(tmp_path: Path) -> None:
    made = run(tmp_path, "init", "--demo", "--port", "0", "--host", HOST, "--earthly")
    assert (made.returncode, made.stderr) == (0, "")
    for words in (
        f"wrote {tmp_path}/bentpipe: CA, certificate for {HOST}, localhost",
        "satellite acme/builder is the demo's gRPC server, as asked",
        "called acme/builder: it woke and answered within",
        "stopped the daemon, and the satellite with it",
        f"    bentpipe serve --config {tmp_path}/bentpipe/bentpipe.toml\n",
    ):
        assert words in made.stdout
    assert run(tmp_path, "check", "bentpipe/bentpipe.toml").returncode == 0
    token, ca = token_in(made.stdout), tmp_path / "bentpipe/ca.pem"
    exports = dict(
        re.findall(r"^    export (\w+)=(.*)$", made.stdout.partition("For the Earthly CLI")[2], re.MULTILINE)
    )
    with serving(tmp_path, tmp_path / "bentpipe/bentpipe.toml") as port:
        metadata = (("satellite_org", "acme"), ("satellite_name", "builder"), ("satellite_token", token))
        with contextlib.closing(GrpcioClient(port, ca.read_bytes(), metadata)) as client:
            assert client.unary("Echo", b"hello") == b"hello"
        wrong = (*metadata[:2], ("satellite_token", token[:-1] + ("0" if token[-1] != "0" else "1")))
        with (
            contextlib.closing(GrpcioClient(port, ca.read_bytes(), wrong)) as client,
            pytest.raises(CallError, match="token"),
        ):
            client.unary("Echo", b"hello")
        # The variables of the Earthly CLI are those of `bentpipe sat`.
        assert exports == {
            "EARTHLY_SERVER_ADDRESS": f"https://{HOST}:{port}",
            "EARTHLY_GRPC_ADDRESS": f"{HOST}:{port}",
            "EARTHLY_TOKEN": token,
            "EARTHLY_ORG": "acme",
            "SSL_CERT_FILE": str(ca),
            "DO_NOT_TRACK": "1",
        }
        listed = run(tmp_path, "sat", "ls", **exports)
        assert listed.returncode == 0, listed.stderr
        assert "builder" in listed.stdout
        [line] = re.findall(r"^    bentpipe (sat ls .*)$", made.stdout, re.MULTILINE)
        assert run(tmp_path, *shlex.split(line), EARTHLY_TOKEN=token).stdout == listed.stdout
        slept = run(tmp_path, "sat", "sleep", "builder", **exports)
        assert slept.returncode == 0, slept.stderr
    again = run(tmp_path, "init", "--demo", "--port", "0")
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already, and nothing in it was changed" in again.stderr
    assert token_in(made.stdout) not in "".join(path.read_text(errors="replace") for path in ca.parent.iterdir())


def test_a_program_of_the_user_s_own_of_which_nothing_stays(tmp_path: Path) -> None:
    """Any gRPC server will do: a method that it does not have is enough to see that the call arrives."""
    program = tmp_path / "server"
    program.write_text(f'#!/bin/sh\n{sys.executable} -P -m bentpipe.daemon.testbed.satellite "$1"\nexit 0\n')
    program.chmod(0o755)
    made = run(
        tmp_path, "init", "my", "--port", "0", "--command", f"{program} {{port}}", "--org", "o", "--satellite", "s"
    )
    assert (made.returncode, made.stderr) == (0, "")
    assert "called o/s: it woke and answered within" in made.stdout
    assert commands_with(program) == []
    config = load_config(tmp_path / "my/bentpipe.toml")
    assert (config.satellite[0].org, config.satellite[0].name) == ("o", "s")


def test_a_satellite_that_does_not_start(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\necho the cache volume is full: $1\nexit 9\n")
    program.chmod(0o755)
    made = run(tmp_path, "init", "--port", "0", "--command", f"{program} {{port}}")
    assert made.returncode == 4
    assert "the call to acme/builder failed: UNAVAILABLE" in made.stderr
    assert "the cache volume is full" in made.stderr
    assert "The files in" in made.stderr
    assert token_in(made.stdout)
    assert run(tmp_path, "check", "bentpipe/bentpipe.toml").returncode == 0


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = run(tmp_path, "init", "--demo", "--port", str(port))
    assert (made.returncode, made.stdout) == (2, "")
    assert f":{port}: Address already in use: stop what listens there, or give --port (0: free ones)" in made.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "a b"), "--host: 'a b' is not a valid host name or address"),
        (("--org", "a b"), "--org: 'a b' is not a valid name"),
        (("--command", "nothing {port}"), "--command: 'nothing' is not a program"),
        (("no/such/folder",), "cannot make "),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    made = run(tmp_path, "init", "--port", "0", *(("--demo",) if "--command" not in arguments else ()), *arguments)
    assert (made.returncode, made.stdout) == (2, "")
    assert words in made.stderr
    assert "Traceback" not in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_stops_the_daemon_and_the_satellite(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\nsleep 1000\n: $1\n")
    program.chmod(0o755)
    command = [str(BENTPIPE), "init", "--port", "0", "--command", f"{program} {{port}}"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + DEADLINE_S
    while not any(line.startswith("/bin/sh\0") for line in commands_with(program)):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 4
    assert "shutting down" in errors or "interrupted" in errors
    assert commands_with(program) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="buildkitd needs root")
def test_from_nothing_to_a_build_in_less_than_two_minutes(tmp_path: Path) -> None:
    """With BuildKit as the satellite, and buildctl called by the printed line."""
    try:
        programs = buildkit()
    except Missing as exc:
        pytest.skip(str(exc))
    path = f"{Path(programs.buildkitd).parent}:{Path(programs.runc).parent}:{os.environ['PATH']}"
    began = time.monotonic()
    made = run(tmp_path, "init", "--port", "0", path=path)
    assert (made.returncode, made.stderr) == (0, "")
    assert f"satellite acme/builder is BuildKit, {programs.buildkitd}" in made.stdout
    assert "called acme/builder: it woke and answered within" in made.stdout
    assert (tmp_path / "bentpipe/buildkit").is_dir()
    context = tmp_path / "context"
    context.mkdir()
    shutil.copy(programs.step, context / "step")
    (context / "Dockerfile").write_text('FROM scratch\nCOPY step /step\nRUN ["/step", "sum", "/step"]\n')
    [line] = re.findall(r"^    (buildctl .*?[^\\])$", made.stdout, re.MULTILINE | re.DOTALL)
    with serving(tmp_path, tmp_path / "bentpipe/bentpipe.toml", path=path):
        built = subprocess.run(
            ["sh", "-c", line],
            cwd=context,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert built.returncode == 0, built.stderr
        assert (context / "out/step").read_bytes() == Path(programs.step).read_bytes()
        assert (context / "out/step.sum").read_text() == hashlib.sha256(Path(programs.step).read_bytes()).hexdigest()
    assert time.monotonic() - began < TWO_MINUTES_S
    assert commands_with(tmp_path / "bentpipe") == []
