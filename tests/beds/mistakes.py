"""The typical mistakes of operators and of their clients, each made with the real program. Returns what is said of it.

The table in docs/troubleshooting.md has a row for each: `tests/e2e/test_troubleshooting.py` compares the two.
"""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from click.testing import CliRunner

from beds.issued import DAY, NOW, Issued
from beds.programs import BENTPIPE
from bentpipe.daemon.service.cli import main

TOKEN, NARROW_TOKEN = "bp_everywhere", "bp_other_alone"
DOMAIN = "sat.example"
DEADLINE_S = 60.0
HOLD_S = 3
"""For satellites that never listen. On a busy host their program may not even have begun by then."""
ATTEMPTS = 5
NOBODY = 65534
NO_AWS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_DEFAULT_REGION": "",
    "AWS_REGION": "",
}
ENVIRONMENT = {**NO_AWS, "STATE_DIRECTORY": "", "RUNTIME_DIRECTORY": ""}
LISTENER = '[[listener]]\naddress = "127.0.0.1:0"\n'
PROCESS = '[satellite.process]\ncommand = ["true", "{port}"]\nuser = "daemon"\n'
EC2 = 'provider = "ec2"\n[satellite.ec2]\ninstance_id = "i-0123456789abcdef0"\nport = 8372\n'


def satellite(kind: str = PROCESS, name: str = "builder") -> str:
    """A section of a satellite."""
    return f'[[satellite]]\norg = "acme"\nname = "{name}"\n{kind}'


def token(grant: str, name: str = "ci", secret: str = TOKEN) -> str:
    """A section of a token."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return f'[[token]]\nname = "{name}"\nhash = "sha256:{digest}"\ngrants = ["{grant}"]\n'


class Folder:
    """Configurations and certificates, and the program run with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority = Issued("Root", names=(), authority=True, ends=NOW + 3650 * DAY)
        good = Issued("edge", names=("localhost", f"*.acme.{DOMAIN}"), issuer=self.authority)
        old = Issued("edge", issuer=self.authority, begins=NOW - 90 * DAY, ends=NOW - DAY, key=good.key)
        early = Issued("edge", issuer=self.authority, begins=NOW + DAY, key=good.key)
        files = {
            "tls.pem": good.pem(),
            "tls.key": good.key_pem(),
            "ca.pem": self.authority.pem(),
            "other.key": Issued("other").key_pem(),
            "locked.key": good.key_pem(b"passphrase"),
            "old.pem": old.pem(),
            "early.pem": early.pem(),
            "stranger.pem": Issued("stranger", names=(), authority=True).pem(),
            "not-a-store": b"hello " * 1000,
            "plain": b"#!/bin/sh\n",
        }
        for name, content in files.items():
            (path / name).write_bytes(content)
        self._made = 0

    def write(self, text: str) -> Path:
        """A configuration of its own."""
        self._made += 1
        config = self.path / f"{self._made}.toml"
        config.write_text(text)
        return config

    def tls(self, certificate: str = "tls.pem", key: str = "tls.key", more: str = "") -> str:
        """A listener with TLS."""
        return f'{LISTENER}[listener.tls]\ncertificate = "{self.path / certificate}"\nkey = "{self.path / key}"\n{more}'

    def run(self, *command: str | Path) -> str:
        """Run a command of bentpipe within this process, which is quick. Returns what it prints."""
        return CliRunner().invoke(main, list(map(str, command)), env=ENVIRONMENT).output

    def run_program(self, *command: str | Path, powerless: bool = False) -> str:
        """Run bentpipe as a process to its end; `powerless`: as a user that may not do everything."""
        drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if powerless else ()
        done = subprocess.run(
            [*drop, BENTPIPE, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env={**os.environ, **ENVIRONMENT},
            check=False,
        )
        return done.stdout + done.stderr

    @staticmethod
    def run_shell(command: str, path: str = os.defpath) -> str:
        """What an operator types, with this PATH. Returns what is printed."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            env={"PATH": path},
            check=False,
        )
        return done.stdout

    def check(self, text: str) -> str:
        """`bentpipe check` of this configuration."""
        return self.run("check", self.write(text))

    def check_powerless(self, text: str) -> str:
        """The same, by a user that may not do everything."""
        return self.run_program("check", self.write(text), powerless=True)

    def give_away(self, path: Path, mode: int) -> Path:
        """Let another user have it."""
        path.chmod(mode)
        os.chown(path, NOBODY, NOBODY)
        return path

    def serve(self, text: str) -> str:
        """`bentpipe serve`, which does not start."""
        return self.run_program("serve", self.write(text))


def typo_in_a_key(folder: Folder) -> str:
    return folder.check(LISTENER + satellite().replace("name =", "nmae ="))


def not_toml(folder: Folder) -> str:
    return folder.check("[[listener]\n")


def no_configuration(folder: Folder) -> str:
    return folder.run("check", folder.path / "absent.toml")


def no_unit(folder: Folder) -> str:
    return folder.check(
        LISTENER + satellite().replace("[satellite.process]", 'sleep_after = "30"\n[satellite.process]')
    )


def one_text_as_command(folder: Folder) -> str:
    return folder.check(LISTENER + satellite().replace('["true", "{port}"]', '"buildkitd --addr {port}"'))


def command_without_its_port(folder: Folder) -> str:
    return folder.check(LISTENER + satellite().replace(', "{port}"', ""))


def satellite_twice(folder: Folder) -> str:
    return folder.check(LISTENER + satellite() + satellite())


def foreign_key(folder: Folder) -> str:
    return folder.check(folder.tls(key="other.key") + satellite())


def expired(folder: Folder) -> str:
    return folder.check(folder.tls("old.pem") + satellite())


def too_early(folder: Folder) -> str:
    return folder.check(folder.tls("early.pem") + satellite())


def locked_key(folder: Folder) -> str:
    return folder.check(folder.tls(key="locked.key") + satellite())


def key_as_certificate(folder: Folder) -> str:
    return folder.check(folder.tls("tls.key", "tls.pem") + satellite())


def no_certificate_for_the_domain(folder: Folder) -> str:
    return folder.check(folder.tls(more='satellite_domain = "builds.example"\n') + satellite())


def leaf_as_authority(folder: Folder) -> str:
    return folder.check(folder.tls(more=f'client_ca = "{folder.path / "tls.pem"}"\n') + satellite())


def credential_without_systemd(folder: Folder) -> str:
    listener = folder.tls().replace(str(folder.path / "tls.key"), "credential:tls.key")
    return folder.check(listener + satellite())


def unreadable_key(folder: Folder) -> str:
    path = folder.path / "private.key"
    path.write_bytes((folder.path / "tls.key").read_bytes())
    folder.give_away(path, 0o600)
    return folder.check_powerless(folder.tls(key="private.key") + satellite())


def grant_of_nothing(folder: Folder) -> str:
    return folder.check(LISTENER + satellite() + token("acme/bilder"))


def grant_of_an_org(folder: Folder) -> str:
    return folder.check(LISTENER + satellite() + token("acme"))


def token_as_hash(folder: Folder) -> str:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    return folder.check(LISTENER + satellite() + token("acme/*").replace(f"sha256:{digest}", TOKEN))


def client_certificates_without_authority(folder: Folder) -> str:
    named = '[[certificate]]\nname = "laptop"\nsan = "EMAIL:a@example.com"\ngrants = ["acme/*"]\n'
    return folder.check(folder.tls() + satellite() + named)


def token_add_without_a_store(folder: Folder) -> str:
    config = folder.write(LISTENER + satellite() + '[store]\nkind = "none"\n')
    return folder.run("token", "add", "--config", config, "--name", "ci", "--grant", "acme/*")


def unknown_region(folder: Folder) -> str:
    return folder.check(LISTENER + satellite(EC2) + '[ec2]\nregion = "eu-centrl-1"\n')


def no_region(folder: Folder) -> str:
    return folder.check(LISTENER + satellite(EC2))


def no_aws_credentials(folder: Folder) -> str:
    return folder.check(LISTENER + satellite(EC2) + '[ec2]\nregion = "eu-central-1"\n')


def no_instance_id(folder: Folder) -> str:
    return folder.check(LISTENER + satellite(EC2.replace("i-0123456789abcdef0", "builder")))


def no_program(folder: Folder) -> str:
    return folder.check(LISTENER + satellite().replace('"true"', '"buildkitdd"'))


def not_executable(folder: Folder) -> str:
    return folder.check(LISTENER + satellite().replace('"true"', f'"{folder.path / "plain"}"'))


def taken_port(folder: Folder) -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        return folder.check(LISTENER.replace("127.0.0.1:0", address) + satellite())


def low_port(folder: Folder) -> str:
    return folder.check_powerless(LISTENER.replace(":0", ":443") + satellite())


def address_of_another_host(folder: Folder) -> str:
    return folder.check(LISTENER.replace("127.0.0.1:0", "192.0.2.1:8372") + satellite())


def store_that_cannot_be_written(folder: Folder) -> str:
    theirs = folder.path / "theirs"
    theirs.mkdir()
    folder.give_away(theirs, 0o755)
    return folder.check_powerless(LISTENER + satellite() + f'[store]\npath = "{theirs / "ledger.sqlite"}"\n')


def no_folder_for_the_store(folder: Folder) -> str:
    return folder.check(LISTENER + satellite() + f'[store]\npath = "{folder.path / "absent" / "ledger.sqlite"}"\n')


def store_that_is_something_else(folder: Folder) -> str:
    return folder.check(LISTENER + satellite() + f'[store]\npath = "{folder.path / "not-a-store"}"\n')


def daemon_with_a_foreign_key(folder: Folder) -> str:
    return folder.serve(folder.tls(key="other.key") + satellite())


def no_daemon(folder: Folder) -> str:
    config = folder.write(LISTENER + satellite() + f'[control]\npath = "{folder.path / "absent.sock"}"\n')
    return folder.run("reload", config)


def report_without_a_ledger(folder: Folder) -> str:
    config = folder.write(LISTENER + satellite() + f'[store]\npath = "{folder.path / "none.sqlite"}"\n')
    return folder.run("report", config)


def id_that_is_none(folder: Folder) -> str:
    return folder.run("why", "build-17", "--config", folder.write(LISTENER + satellite()))


def not_on_path(folder: Folder) -> str:
    return folder.run_shell("bentpipe check", path=str(folder.path))


def no_units(folder: Folder) -> str:
    root = folder.path / "a-host"
    root.mkdir()
    return folder.run_shell(f"systemctl --root={root} enable bentpipe.socket")


def certificate_not_there(folder: Folder) -> str:
    return folder.check(folder.tls("absent.pem") + satellite())


def init_twice(folder: Folder) -> str:
    there = folder.path / "there"
    there.mkdir()
    return folder.run("init", there)


def init_on_a_taken_port(folder: Folder) -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return folder.run("init", folder.path / "new", "--demo", "--port", str(taken.getsockname()[1]))


def init_with_a_program_that_is_not_there(folder: Folder) -> str:
    return folder.run("init", folder.path / "new", "--command", "buildkitdd {port}")


BEFORE: dict[str, Callable[[Folder], str]] = {
    "`bentpipe` is not on PATH": not_on_path,
    "the units are not there, after an installation of the wheel": no_units,
    "a certificate's file is not there": certificate_not_there,
    "`init` for a folder that is there": init_twice,
    "`init` on a port that is taken": init_on_a_taken_port,
    "`init` with a program that is not there": init_with_a_program_that_is_not_there,
    "a key is misspelt": typo_in_a_key,
    "the file is not TOML": not_toml,
    "the file is not there": no_configuration,
    "a duration has no unit": no_unit,
    "a command is one text": one_text_as_command,
    "a command does not take its port": command_without_its_port,
    "a satellite is there twice": satellite_twice,
    "a key belongs to another certificate": foreign_key,
    "the same, at the start of the daemon": daemon_with_a_foreign_key,
    "a certificate has expired": expired,
    "a certificate is not valid yet": too_early,
    "a key is encrypted": locked_key,
    "certificate and key are swapped": key_as_certificate,
    "no certificate is for the satellites' domain": no_certificate_for_the_domain,
    "`client_ca` is not an authority": leaf_as_authority,
    "a credential of systemd, used without systemd": credential_without_systemd,
    "the service's user cannot read a key": unreadable_key,
    "a grant fits nothing": grant_of_nothing,
    "a grant is not a satellite": grant_of_an_org,
    "the token is given as its hash": token_as_hash,
    "client certificates, but no `client_ca`": client_certificates_without_authority,
    "`token add` without a store": token_add_without_a_store,
    "a region is misspelt": unknown_region,
    "no region": no_region,
    "no AWS credentials": no_aws_credentials,
    "an instance's name instead of its id": no_instance_id,
    "a satellite's program is not there": no_program,
    "a satellite's program is not executable": not_executable,
    "another program has the port": taken_port,
    "a port below 1024": low_port,
    "an address of another host": address_of_another_host,
    "the store cannot be written": store_that_cannot_be_written,
    "the store's folder is not there": no_folder_for_the_store,
    "the store is another file": store_that_is_something_else,
    "no daemon runs": no_daemon,
    "no ledger yet": report_without_a_ledger,
    "`why` with something else than an id": id_that_is_none,
}
"""Mistakes that a command tells, by their name in the table."""


class Edge:
    """A daemon with satellites that have mistakes, for clients that make some."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.stranger = socket.create_server(("127.0.0.1", 0))
        port = self.stranger.getsockname()[1]
        silent = ["sh", "-c", "echo cache: waiting for a lock; exec sleep 600", "{port}"]
        dies = ["sh", "-c", "echo /var/lib: no space left on device; exit 3", "{port}"]
        works = [sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}"]
        commands = {"builder": works, "silent": silent, "dies": dies, "crowded": ["sh", "-c", "exec sleep 600"]}
        satellites = "".join(
            satellite(
                (f'hold_limit = "{HOLD_S}s"\n' if name in ("silent", "crowded") else "")
                + f"[satellite.process]\ncommand = {json.dumps(command)}\n"
                + (f"port = {port}\n" if name == "crowded" else ""),
                name,
            )
            for name, command in commands.items()
        )
        self.control = folder.path / "run" / "control.sock"
        self.control.parent.mkdir()
        listeners = folder.tls(more=f'satellite_domain = "{DOMAIN}"\n') + LISTENER
        tokens = token("acme/*") + token("acme/silent", "narrow", NARROW_TOKEN)
        head = f'[daemon]\nlog_format = "json"\ndrain_deadline = "1s"\n[control]\npath = "{self.control}"\n'
        head += f'[store]\npath = "{folder.path / "edge.sqlite"}"\n'
        self.config = folder.write(head + listeners + satellites + tokens)
        self._log = folder.path / "edge.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.tls_port = self.plain_port = 0

    def start(self) -> None:
        """Serve, and wait for both ports."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([BENTPIPE, "serve", "--config", self.config], stderr=log)
        ports: list[int] = []
        while len(ports) < 2:
            assert self._process.poll() is None, self._log.read_text()
            lines = self._log.read_text().splitlines()
            told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
            ports = [int(each["port"]) for each in told if each["message"] == "listening"]
        self.tls_port, self.plain_port = ports

    def close(self) -> None:
        """End it."""
        self.stranger.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(DEADLINE_S)

    def call(
        self,
        name: str | None = "builder",
        secret: str | None = TOKEN,
        *,
        server_name: str = "",
        authority: str = "ca.pem",
    ) -> str:
        """One call with TLS. Returns what the client prints of its failure."""
        pem = (self.folder.path / authority).read_bytes()
        options: list[tuple[str, str | int]] = [("grpc.use_local_subchannel_pool", 1)]
        options += [("grpc.ssl_target_name_override", server_name)] if server_name else []
        channel = grpc.secure_channel(f"localhost:{self.tls_port}", grpc.ssl_channel_credentials(pem), options=options)
        return refusal(channel, name, secret)

    def plain_call(self, port: int) -> str:
        """One call without TLS."""
        return refusal(grpc.insecure_channel(f"127.0.0.1:{port}"), "builder", TOKEN)


def refusal(channel: grpc.Channel, name: str | None, secret: str | None) -> str:
    """One call. Returns what the client prints of its failure."""
    metadata = [("satellite_org", "acme"), ("satellite_name", name)] if name else []
    if secret:
        metadata.append(("satellite_token", secret))
    with channel:
        try:
            channel.unary_unary("/bentpipe.demo.Satellite/Echo")(b"", metadata=metadata, timeout=DEADLINE_S)
        except grpc.RpcError as exc:
            return f"{exc.code().name}: {exc.details()}"
    return "served"


@contextlib.contextmanager
def edge(folder: Folder) -> Iterator[Edge]:
    """A daemon until the end of the block."""
    host = Edge(folder)
    try:
        host.start()
        yield host
    finally:
        host.close()


def _why(host: Edge) -> str:
    """The id in a refusal, asked for."""
    found = host.call(secret="bp_wrong").rpartition("(connection ")[2].rstrip(")")
    return host.folder.run_program("why", found, "--config", host.config)


DURING: dict[str, Callable[[Edge], str]] = {
    "a plaintext client on the port with TLS": lambda host: host.plain_call(host.tls_port),
    "a client does not trust the authority": lambda host: host.call(authority="stranger.pem"),
    "a client names no satellite": lambda host: host.call(None),
    "a client names a satellite that is not there": lambda host: host.call("bilder"),
    "a server name outside the domain": lambda host: host.call(None, server_name="localhost"),
    "a client sends no token": lambda host: host.call(secret=None),
    "a client's token is wrong": lambda host: host.call(secret="bp_wrong"),
    "a client's token is for another satellite": lambda host: host.call(secret=NARROW_TOKEN),
    "a satellite's program does not listen": lambda host: _when_it_has_printed(host),
    "a satellite's program ends": lambda host: host.call("dies"),
    "another program has the satellite's port": lambda host: host.call("crowded"),
    "a user quotes the id of a refusal": _why,
    "`sat ls` on a port without the control API": lambda host: host.folder.run_program(
        *("sat", "ls", "--org", "acme", "--token", TOKEN, "--ca", host.folder.path / "ca.pem"),
        *("--server", f"https://localhost:{host.tls_port}"),
    ),
    "a mistake in a reload": lambda host: _bad_reload(host),
}
"""Mistakes that a running daemon tells, by their name in the table."""


def _when_it_has_printed(host: Edge) -> str:
    said = ""
    for _ in range(ATTEMPTS):
        said = host.call("silent")
        if "cache" in said:
            break
    return said


def _bad_reload(host: Edge) -> str:
    text = host.config.read_text()
    try:
        host.config.write_text(text + "[daemon]\n")
        return host.folder.run_program("reload", host.config)
    finally:
        host.config.write_text(text)
