"""Every way in: IPv4, IPv6, both at once, plaintext h2c, sockets and watchdog of the service manager."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from beds.ports import free_port

TOKEN = "bp_" + "5a" * 32
METADATA = (("satellite_name", "s"), ("satellite_org", "acme"), ("satellite_token", TOKEN))
CONFIG = f"""
[daemon]
log_format = "json"
[[listener]]
{{listener}}
[[token]]
name = "t"
hash = "sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
grants = ["acme/*"]
[[satellite]]
org = "acme"
name = "s"
[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{{{port}}}}"]
"""
SERVE = (sys.executable, "-P", "-m", "bentpipe.daemon.service.entry", "serve", "--config")


class Manager:
    """The service manager's end of sd_notify(3)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(30)
        self._socket.bind(str(self.path))

    def wait(self, state: str) -> None:
        while self._socket.recv(4096).decode() != state:
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@dataclasses.dataclass
class Running:
    """The daemon, and the lines of its log; complete once it has ended."""

    process: subprocess.Popen[str]
    words: list[str]

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.contextmanager
def serving(
    folder: Path, manager: Manager, listener: str, fd: int | None = None, **environment: str
) -> Iterator[Running]:
    config = folder / "bentpipe.toml"
    config.write_text(CONFIG.format(listener=listener))
    command = [*SERVE, str(config)]
    if fd is not None:  # the shell gives it LISTEN_PID and descriptor 3, as systemd does
        command = ["bash", "-c", f'exec 3<&{fd}; export LISTEN_PID=$$; exec "$@"', "bash", *command]
        environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "clients"}
    process = subprocess.Popen(
        command,
        env={**os.environ, "NOTIFY_SOCKET": str(manager.path), **environment},
        stderr=subprocess.PIPE,
        pass_fds=[fd] if fd is not None else [],
        text=True,
    )
    words: list[str] = []
    assert process.stderr
    reader = threading.Thread(target=words.extend, args=(process.stderr,))
    reader.start()
    try:
        manager.wait("READY=1")
        yield Running(process, words)
    finally:
        process.terminate()
        code = process.wait(60)
        reader.join()
        process.stderr.close()
    assert code == 0, "".join(words)


def echo(target: str) -> None:
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert channel.unary_unary("/bentpipe.demo.Satellite/Echo")(b"hello", metadata=METADATA, timeout=30) == b"hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_plaintext_on_one_address(tmp_path: Path, manager: Manager, host: str) -> None:
    port = free_port(host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with serving(tmp_path, manager, f'address = "{address}"'):
        echo(f"ipv6:{address}" if ":" in host else f"ipv4:{address}")


def test_an_empty_host_serves_both_families(tmp_path: Path, manager: Manager) -> None:
    port = free_port("::")
    with serving(tmp_path, manager, f'address = ":{port}"'):
        echo(f"ipv4:127.0.0.1:{port}")
        echo(f"ipv6:[::1]:{port}")


def test_a_socket_handed_over_by_the_service_manager(tmp_path: Path, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with serving(tmp_path, manager, 'systemd = "clients"', fd=listening.fileno()):
            echo(f"ipv4:127.0.0.1:{port}")


def served_certificate(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as sock, context.wrap_socket(sock) as tls:
        certificate = tls.getpeercert(binary_form=True)
        assert certificate
        return certificate


def test_certificates_are_read_again_on_sighup_and_a_bad_one_changes_nothing(tmp_path: Path, manager: Manager) -> None:
    authority, port = trustme.CA(), free_port("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def issue() -> None:
        issued = authority.issue_cert("127.0.0.1")
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())

    issue()
    listener = f'address = "127.0.0.1:{port}"\n[listener.tls]\ncertificate = "{certificate}"\nkey = "{key}"'
    with serving(tmp_path, manager, listener) as process:
        first = served_certificate(port)
        issue()
        process.send_signal(signal.SIGHUP)
        manager.wait("READY=1")
        second = served_certificate(port)
        key.write_text("no key")
        process.send_signal(signal.SIGHUP)
        manager.wait("READY=1")
        assert served_certificate(port) == second != first
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(f"ipv4:127.0.0.1:{port}", credentials) as channel:
            assert channel.unary_unary("/bentpipe.demo.Satellite/Echo")(b"x", metadata=METADATA, timeout=30) == b"x"


def test_certificates_on_a_disk_that_hangs_hold_up_nobody(tmp_path: Path, manager: Manager) -> None:
    """A pipe stands for it: open(2) waits for a writer that never comes."""
    authority, port = trustme.CA(), free_port("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("127.0.0.1")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    listener = f'address = "127.0.0.1:{port}"\n[listener.tls]\ncertificate = "{certificate}"\nkey = "{key}"'
    with serving(tmp_path, manager, listener) as process:
        first = served_certificate(port)
        certificate.unlink()
        os.mkfifo(certificate)
        for _ in range(3):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            assert served_certificate(port) == first
        manager.wait("READY=1")
        assert served_certificate(port) == first
    assert any("not reloaded" in line and "the disk hangs" in line for line in process.words)


def test_every_end_is_counted_and_told_on_sigusr1(tmp_path: Path, manager: Manager) -> None:
    port = free_port("127.0.0.1")
    with serving(tmp_path, manager, f'address = "127.0.0.1:{port}"') as process:
        echo(f"ipv4:127.0.0.1:{port}")
        process.send_signal(signal.SIGUSR1)
    told = [json.loads(line) for line in process.words if "statistics" in line]
    assert len(told) == 2, "on the signal, and at the end of the drain"
    assert told[0]["accepted"] == 1
    assert told[-1]["outcomes"] == {"spliced": 1}
    assert sum(told[-1]["splice_ends"].values()) == 1
    assert told[-1]["engine"]["copied_bytes"] > 0


def test_the_watchdog_is_fed_and_the_end_announced(tmp_path: Path, manager: Manager) -> None:
    with serving(tmp_path, manager, 'address = "127.0.0.1:0"', WATCHDOG_USEC="200000"):
        manager.wait("WATCHDOG=1")
        manager.wait("WATCHDOG=1")
    manager.wait("STOPPING=1")
