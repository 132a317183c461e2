"""Writes the folder of a new installation: certificates, keys, configuration and systemd unit.

It never overwrites anything. If a step fails, it removes the folder that it has made.
"""

import dataclasses
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.config.model import Config
from bentpipe.daemon.service.init_certificates import Made
from bentpipe.daemon.service.init_satellite import InitError, Program

CONFIG_NAME = "bentpipe.toml"
UNIT_NAME = "bentpipe.service"
CA_NAME = "ca.pem"

FOLDER_MODE = 0o700
PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644

THERE_ALREADY = "{folder} is there already, and nothing in it was changed: name another folder"

ARM = ("aarch64", "arm64")
TOKEN_NAME = "admin"
CLIENT_URI = "bentpipe:admin"
SATELLITE_DOMAIN = "sat.internal"
"""Of the TLS server names by which buildctl asks for a satellite; no DNS has to know it (RFC 6762, appendix G)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Installation:
    """What is written down."""

    folder: Path
    """Absolute, since the daemon may be started in any directory."""
    port: int
    certificate_port: int
    """For clients that show a certificate and no token; only if the satellite is BuildKit."""
    org: str
    satellite: str
    token_hash: str
    program: Program
    certificates: Made

    @property
    def config_path(self) -> Path:
        """The configuration."""
        return self.folder / CONFIG_NAME

    @property
    def ca_path(self) -> Path:
        """The authority's certificate, which clients need."""
        return self.folder / CA_NAME

    @property
    def server_name(self) -> str:
        """The TLS server name by which a client with a certificate asks for the satellite."""
        return f"{self.satellite}.{self.org}.{SATELLITE_DOMAIN}"

    @property
    def unit_path(self) -> Path:
        """The systemd unit."""
        return self.folder / UNIT_NAME


def write_installation(made: Installation) -> Config:
    """Write the folder and return its configuration, as the daemon reads it. Raises InitError, with nothing left."""
    folder = made.folder
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError as exc:
        raise InitError(THERE_ALREADY.format(folder=folder)) from exc
    except OSError as exc:
        raise InitError(f"cannot make {folder}: {exc.strerror}: name a folder inside one that you may write") from exc
    try:
        _write(folder / CA_NAME, made.certificates.authority, PUBLIC_MODE)
        _write(folder / "ca-key.pem", made.certificates.authority_key, PRIVATE_MODE)
        _write(folder / "cert.pem", made.certificates.certificate, PUBLIC_MODE)
        _write(folder / "key.pem", made.certificates.key, PRIVATE_MODE)
        if made.program.is_buildkit:
            _write(folder / "client.pem", made.certificates.client_certificate, PUBLIC_MODE)
            _write(folder / "client-key.pem", made.certificates.client_key, PRIVATE_MODE)
        _write(made.config_path, config_text(made).encode(), PRIVATE_MODE)
        _write(made.unit_path, unit_text(made).encode(), PUBLIC_MODE)
        return load_config(made.config_path)
    except (OSError, ValueError, ConfigErrors) as exc:
        shutil.rmtree(folder, ignore_errors=True)
        raise InitError(f"cannot write {folder}, which was removed again: {exc}") from exc
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def config_text(made: Installation) -> str:
    """The configuration."""
    folder = made.folder
    machine = "arm64" if platform.machine() in ARM else "amd64"
    return f"""\
# Written by `bentpipe init`. `bentpipe check` reports mistakes; config/sample.toml explains every key.

[store]  # the ledger, for `bentpipe report`, and the tokens of `bentpipe token add`
path = {_toml(str(folder / "ledger.sqlite"))}

[[listener]]
address = ":{made.port}"
api = true  # the control API, beside the satellites
[listener.tls]
certificate = {_toml(str(folder / "cert.pem"))}
key = {_toml(str(folder / "key.pem"))}
{_certificate_text(made) if made.program.is_buildkit else ""}
[[token]]
name = {_toml(TOKEN_NAME)}
hash = {_toml(made.token_hash)}
grants = [{_toml(made.org + "/*")}]
scopes = ["manage"]

[[satellite]]
org = {_toml(made.org)}
name = {_toml(made.satellite)}
platform = "linux/{machine}"
sleep_after = "30m"
min_awake = "0s"  # a process can be put to sleep at any time
[satellite.process]
command = [
{"".join(f"    {_toml(word)},{chr(10)}" for word in made.program.command)}]
"""


def _certificate_text(made: Installation) -> str:
    """The part for buildctl and docker buildx, which can send no token."""
    folder = made.folder
    return f"""
[[listener]]  # for clients that show a certificate: buildctl, docker buildx
address = ":{made.certificate_port}"
[listener.tls]
certificate = {_toml(str(folder / "cert.pem"))}
key = {_toml(str(folder / "key.pem"))}
client_ca = {_toml(str(folder / CA_NAME))}
satellite_domain = {_toml(SATELLITE_DOMAIN)}

[[certificate]]
name = "buildctl"
san = {_toml("URI:" + CLIENT_URI)}
grants = [{_toml(made.org + "/*")}]
"""


def unit_text(made: Installation) -> str:
    """The systemd unit (systemd.service(5)). It runs as the user who made it, since satellites need that user's rights."""
    command = _unit_words((sys.executable, "-P", "-m", "bentpipe.daemon.service.entry"))
    config = _unit_words((str(made.config_path),))
    return f"""\
# Written by `bentpipe init`. Satellites and connections live inside this unit, with its rights, and a restart ends builds.
# The units of bentpipe's package are hardened, and let builds outlive a restart.
[Unit]
Description=bentpipe: wakes satellites and splices clients to them
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
User={os.geteuid()}
ExecStart={command} serve --config {config}
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec=30
Restart=on-failure
RestartSec=1
# 3 means "drained, but connections were cut".
SuccessExitStatus=3
# Longer than drain_deadline.
TimeoutStopSec=90
# The daemon stops its satellites itself; processes that are left get SIGKILL.
KillMode=mixed
# Satellites are put to sleep by the freezer of the unit's cgroup.
Delegate=yes
LimitNOFILE=262144
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def _toml(text: str) -> str:
    """A basic string of TOML. JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _unit_words(words: Sequence[str]) -> str:
    """Words of a command line as systemd.service(5) reads them."""
    return " ".join(json.dumps(word, ensure_ascii=False).replace("%", "%%").replace("$", "$$") for word in words)
