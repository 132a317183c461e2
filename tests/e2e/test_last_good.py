"""A daemon whose file has mistakes starts with the configuration of its last start, on the port that systemd holds."""

import contextlib
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from beds.ports import free_port
from beds.programs import BENTPIPE
from bentpipe.config.sources import Texts, folder_of

DEADLINE_S = 30.0
NAME = "last-good.json"


class Bed:
    """A folder with a configuration, certificates, a state directory and a socket as systemd passes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "bentpipe.toml"
        self.state = folder / "state"
        self.state.mkdir()
        self.metrics = free_port()
        self.notify = folder / "notify"
        self.said: list[str] = []
        """What the daemon has told systemd."""
        issued = trustme.CA().issue_cert("localhost")
        (folder / "tls.pem").write_bytes(issued.cert_chain_pems[0].bytes())
        (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
        (folder / "other.key").write_bytes(trustme.CA().issue_cert("other").private_key_pem.bytes())
        self.good = (
            f'[metrics]\naddress = "127.0.0.1:{self.metrics}"\n'
            '[[listener]]\nsystemd = "clients"\n'
            '[[listener]]\naddress = "127.0.0.1:0"\n'
            f'[listener.tls]\ncertificate = "{folder}/tls.pem"\nkey = "{folder}/tls.key"\n'
            '[[satellite]]\norg = "acme"\nname = "ci"\n[satellite.process]\ncommand = ["true", "{port}"]\n'
        )
        self.config.write_text(self.good)

    @contextlib.contextmanager
    def serving(self, clients: socket.socket, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Run `bentpipe serve` with the socket until the end of the block; it has sent READY=1."""
        self.notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (self.folder / "log").open("w") as log:
            manager.bind(str(self.notify))
            manager.settimeout(DEADLINE_S)
            environment = {
                **os.environ,
                "STATE_DIRECTORY": str(self.state),
                "NOTIFY_SOCKET": str(self.notify),
                "LISTEN_FDS": "1",
                "LISTEN_FDNAMES": "clients",
            }
            script = f'exec 3<&{clients.fileno()}; export LISTEN_PID=$$; exec "$@"'
            command = ["bash", "-c", script, "bash", str(BENTPIPE), "serve", "--config", str(self.config), *options]
            daemon = subprocess.Popen(
                command, env=environment, pass_fds=[clients.fileno()], stderr=log, stdout=subprocess.PIPE, text=True
            )
            try:
                self.said.clear()
                while "READY=1" not in self.said and daemon.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        manager.settimeout(0.2)
                        self.said.append(manager.recv(4096).decode())
                with contextlib.suppress(TimeoutError):
                    while True:
                        self.said.append(manager.recv(4096).decode())
                yield daemon
            finally:
                daemon.terminate()
                daemon.communicate(timeout=DEADLINE_S)

    def add_to_folder(self, text: str) -> bool:
        """Put one more file into the folder beside the configuration."""
        folder = folder_of(self.config)
        folder.mkdir(exist_ok=True)
        return bool((folder / "more.toml").write_text(text))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def metric(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=DEADLINE_S) as answer:
            found = re.search(r"^bentpipe_configuration_is_last_good ([\d.]+)$", answer.read().decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


@pytest.fixture
def clients() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def refusal(port: int) -> str:
    """What a client without metadata reads: the daemon answers on the port."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/s/m")(b"", timeout=DEADLINE_S)
        return str(error.value.details())


def kept(bed: Bed) -> Texts | None:
    path = bed.state / NAME
    return Texts.loaded(path.read_bytes()) if path.exists() else None


def wait_kept(bed: Bed) -> Texts:
    """Wait until the copy is what the files are now."""
    deadline, texts = time.monotonic() + DEADLINE_S, Texts.read(bed.config)
    while kept(bed) != texts:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return texts


MISTAKES: dict[str, Callable[[Bed], str]] = {
    "unknown key": lambda bed: "[daemon]\nno_such_key = 1\n" + bed.good,
    "not TOML": lambda bed: bed.good + "[[",
    "key of another certificate": lambda bed: bed.good.replace("tls.key", "other.key"),
    "an address of another host": lambda bed: bed.good + '[[listener]]\naddress = "192.0.2.1:0"\n',
    "empty": lambda _bed: "",
    "in a file of the folder": lambda bed: bed.good if bed.add_to_folder("[daemon]\n") else "",
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_does_not_close_the_port(bed: Bed, clients: socket.socket, mistake: str) -> None:
    port = clients.getsockname()[1]
    with bed.serving(clients, "--last-good"):
        assert "are missing" in refusal(port)
        assert bed.metric() == 0
        good = wait_kept(bed)
    bed.config.write_text(MISTAKES[mistake](bed))
    with bed.serving(clients, "--last-good"):
        assert "are missing" in refusal(port)
        assert bed.metric() == 1
        assert any(each.startswith("STATUS=runs with the configuration of ") for each in bed.said)
        assert kept(bed) == good
    assert "not the configuration of the file" in bed.log
    bed.config.write_text(bed.good + "[limits]\nmax_held = 9\n")
    bed.add_to_folder('[[satellite]]\norg = "acme"\nname = "more"\n[satellite.process]\ncommand = ["true", "{port}"]\n')
    with bed.serving(clients, "--last-good"):
        assert bed.metric() == 0
        wait_kept(bed)


@pytest.mark.parametrize("kept", [None, "[[", '[["bentpipe.toml", "[daemon]\\nfrom_a_newer_version = 1\\n"]]'])
def test_without_a_usable_copy_the_mistakes_are_told(bed: Bed, clients: socket.socket, kept: str | None) -> None:
    bed.config.write_text("[daemon]\nno_such_key = 1\n" + bed.good)
    if kept is not None:
        (bed.state / NAME).write_text(kept)
    with bed.serving(clients, "--last-good") as daemon:
        assert daemon.wait(DEADLINE_S) == 2
    assert "daemon.no_such_key: unknown key" in bed.log
    assert "READY=1" not in bed.said


def test_without_the_option_nothing_is_kept_or_used(bed: Bed, clients: socket.socket) -> None:
    (bed.state / NAME).write_text(bed.good)
    bed.config.write_text("[daemon]\nno_such_key = 1\n" + bed.good)
    with bed.serving(clients) as daemon:
        assert daemon.wait(DEADLINE_S) == 2
    assert "no_such_key" in bed.log


def test_a_copy_that_cannot_be_written(bed: Bed, clients: socket.socket) -> None:
    (bed.state / NAME).mkdir()
    with bed.serving(clients, "--last-good"):
        assert "are missing" in refusal(clients.getsockname()[1])
        deadline = time.monotonic() + DEADLINE_S
        while "the configuration was not kept" not in bed.log:
            assert time.monotonic() < deadline
            time.sleep(0.02)
