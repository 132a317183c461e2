"""A daemon's configuration with one TLS port for both the control API and satellites that are processes."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme

from beds.hosts.form import write_in_form


@dataclasses.dataclass(frozen=True)
class ApiToken:
    """A token of the configuration; its principal has the name that it is kept under."""

    secret: str
    grants: Sequence[str] = ("acme/*",)
    scope: str = "use"


def write_api_config(
    folder: Path, tokens: Mapping[str, ApiToken], satellites: Mapping[str, Sequence[str]], *, sections: str = ""
) -> tuple[Path, Path]:
    """Write it. `satellites` are ORG/NAME, and arguments of the program. Returns the file, and the CA's certificate."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    (folder / "key.pem").write_bytes(server.private_key_pem.bytes())
    authority.cert_pem.write_to_path(folder / "ca.pem")
    parts = [
        f"""
{sections}
[[listener]]
address = "127.0.0.1:0"
api = true
[listener.tls]
certificate = "{folder / "cert.pem"}"
key = "{folder / "key.pem"}"
"""
    ]
    for name, token in tokens.items():
        digest = hashlib.sha256(token.secret.encode()).hexdigest()
        grants, scopes = json.dumps(list(token.grants)), json.dumps([token.scope])
        parts.append(f'[[token]]\nname = "{name}"\nhash = "sha256:{digest}"\ngrants = {grants}\nscopes = {scopes}\n')
    for satellite, arguments in satellites.items():
        org, _, name = satellite.partition("/")
        command = [sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}", *arguments]
        parts.append(
            f'[[satellite]]\norg = "{org}"\nname = "{name}"\nplatform = "linux/arm64"\nmin_awake = 0\nsleep_mode = "stop"\n'
            f"[satellite.process]\ncommand = {json.dumps(command)}\n"
        )
    path = folder / "bentpipe.toml"
    write_in_form(path, "\n".join(parts), folder)
    return path, folder / "ca.pem"
