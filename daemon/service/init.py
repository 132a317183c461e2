"""`bentpipe init`: from nothing to a daemon that has answered a call. Writes a folder, makes the call, says what is next.

It checks all that it can before it writes anything. It prints the token, and writes only its hash.
"""

import contextlib
import dataclasses
import os
import re
import socket
from pathlib import Path

import click

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.connections.listener import bind
from bentpipe.daemon.ports import reserve_port
from bentpipe.daemon.service.init_call import FirstCallFailed, make_first_call
from bentpipe.daemon.service.init_certificates import is_host, make_certificates
from bentpipe.daemon.service.init_files import (
    CLIENT_URI,
    SATELLITE_DOMAIN,
    THERE_ALREADY,
    TOKEN_NAME,
    Installation,
    write_installation,
)
from bentpipe.daemon.service.init_satellite import InitError, choose_program
from bentpipe.daemon.service.token import hash_token, new_token

EXIT_OK = 0
EXIT_NOTHING_WRITTEN = 2
EXIT_FIRST_CALL = 4
"""Everything is written, but the first call failed."""

LOCALHOST = "localhost"
EVERY_ADDRESS = "0.0.0.0"
LOCAL = (LOCALHOST, "127.0.0.1", "::1")
"""The Earthly CLI takes a satellite at one of these for a local container, and wants Docker."""


@dataclasses.dataclass(frozen=True, slots=True)
class InitWish:
    """What the user asks for."""

    folder: Path
    hosts: tuple[str, ...]
    """Names and addresses for the certificate; empty: this host's name. `localhost` is always added."""
    port: int
    """0: a free one. BuildKit takes the next port too, for clients that show a certificate."""
    org: str
    satellite: str
    command: str | None
    """The satellite's program and its arguments as a shell would read them."""
    demo: bool
    earthly: bool


def run_init(wish: InitWish) -> int:
    """Write the folder and make the first call. Returns the exit code. Raises InitError if nothing was written."""
    folder = wish.folder.absolute()
    if os.path.lexists(folder):
        raise InitError(THERE_ALREADY.format(folder=folder))
    for kind, name in (("org", wish.org), ("satellite", wish.satellite)):
        if not re.fullmatch(NAME_PATTERN, name):
            raise InitError(f"--{kind}: {name!r} is not a valid name: letters, digits, '.', '_' and '-', at most 64")
    hosts = _hosts(wish.hosts)
    program = choose_program(wish.command, folder, demo=wish.demo)
    port, certificate_port = _free_ports(wish.port, 2 if program.is_buildkit else 1)
    token = new_token()
    certificates = make_certificates((*hosts, f"*.{wish.org}.{SATELLITE_DOMAIN}"), CLIENT_URI)
    made = Installation(
        folder, port, certificate_port, wish.org, wish.satellite, hash_token(token), program, certificates
    )
    config = write_installation(made)
    click.echo(f"wrote {folder}: CA, certificate for {', '.join(hosts)}, configuration, systemd unit")
    click.echo(f"satellite {wish.org}/{wish.satellite} is {program.words}")
    click.echo(f"token {TOKEN_NAME!r}, shown only now:\n\n    {token}\n")
    failed = None
    try:
        make_first_call(config, made.ca_path, token, program, click.echo)
    except FirstCallFailed as exc:
        failed = exc
        click.echo(
            f"{exc}\nThe files in {folder} stay. Mend the cause and run the daemon, or remove the folder.", err=True
        )
    click.echo("\n" + _next_steps(made, token))
    if program.is_buildkit:
        click.echo("\n" + _buildctl_lines(made))
    if wish.earthly:
        click.echo("\n" + _earthly_lines(made, hosts, token))
    return EXIT_OK if failed is None else EXIT_FIRST_CALL


def _hosts(wished: tuple[str, ...]) -> tuple[str, ...]:
    """The names for the certificate, each once. Raises InitError."""
    hosts = tuple(dict.fromkeys((*(wished or (socket.gethostname(),)), LOCALHOST)))
    for host in hosts:
        if not is_host(host):
            where = "--host" if wished else "this host's name; give --host"
            raise InitError(f"{where}: {host!r} is not a valid host name or address")
    return hosts


def _free_ports(wished: int, count: int) -> tuple[int, int]:
    """The port and the next one, if nobody listens at the first `count` of them; for 0 free ones. Raises InitError."""
    with contextlib.ExitStack() as opened:
        ports = []
        for offset in range(count):
            try:
                port = wished + offset if wished else opened.enter_context(reserve_port(EVERY_ADDRESS)).port
                [sock] = bind("", port)
            except OSError as exc:
                raise InitError(f"{exc.strerror}: stop what listens there, or give --port (0: free ones)") from exc
            opened.enter_context(sock)
            ports.append(port)
    return ports[0], ports[-1]


def _next_steps(made: Installation, token: str) -> str:
    return f"""\
Next:
    bentpipe serve --config {made.config_path}
or as a service:
    systemctl enable --now {made.unit_path}
See your satellites while it runs:
    export EARTHLY_TOKEN={token}
    bentpipe sat ls --server https://{LOCALHOST}:{made.port} --org {made.org} --ca {made.ca_path}
The certificate ends on {made.certificates.ends:%Y-%m-%d}. Keep ca-key.pem in a safe place: it signs the next one."""


def _buildctl_lines(made: Installation) -> str:
    folder = made.folder
    return f"""\
A first build while it runs, in the folder of a Dockerfile (docker buildx: docs/clients.md). The result is in ./out:
    buildctl --addr tcp://{LOCALHOST}:{made.certificate_port} --tlsservername {made.server_name} \\
        --tlscacert {folder}/ca.pem --tlscert {folder}/client.pem --tlskey {folder}/client-key.pem \\
        build --frontend dockerfile.v0 --local context=. --local dockerfile=. --output type=local,dest=out
Without a Dockerfile at hand, this makes one that needs no network:
    printf 'FROM scratch\\nCOPY . /\\n' > Dockerfile"""


def _earthly_lines(made: Installation, hosts: tuple[str, ...], token: str) -> str:
    """The configuration and environment of an Earthly CLI v0.8.15 that is not modified (docs/api.md)."""
    host = next((host for host in hosts if host not in LOCAL), None)
    address = f"{f'[{host}]' if ':' in (host or '') else host or LOCALHOST}:{made.port}"
    certificate = made.ca_path.name
    lines = f"""\
For the Earthly CLI, in the environment ({certificate} copied to where the CLI runs):
    export EARTHLY_SERVER_ADDRESS=https://{address}
    export EARTHLY_GRPC_ADDRESS={address}
    export EARTHLY_TOKEN={token}
    export EARTHLY_ORG={made.org}
    export SSL_CERT_FILE={made.ca_path}
    export DO_NOT_TRACK=1
in its ~/.earthly/config.yml:
    global:
      disable_analytics: true
      disable_log_sharing: true
then:
    earthly --sat {made.satellite} +TARGET
The satellite must run Earthly's BuildKit (the image earthly/buildkitd): a plain buildkitd cannot export its builds."""
    if host is None:
        lines += f"\nThe CLI takes {LOCALHOST} for a local container: make another folder with --host NAME."
    return lines
