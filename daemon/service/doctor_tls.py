"""What `bentpipe doctor` says of the configuration's certificates, keys and revocation lists. It must never write."""

import datetime
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from bentpipe.config.model import Config
from bentpipe.config.sources import ConfigErrors
from bentpipe.daemon.image.programs.findings import Finding, Severity
from bentpipe.daemon.service.certificate_files import certificate_ends
from bentpipe.daemon.service.installed import read_operators_config
from bentpipe.daemon.service.preflight_tls import tls_concerns
from bentpipe.daemon.service.read_chain import read_chain

SUBJECT = "certificates"
RSA_REMEDY = "a handshake takes about twice the CPU time of one with ECDSA P-256: certbot renew --key-type ecdsa"


def configured_findings(config_path: Path) -> Iterator[Finding]:
    """Look at all certificates that a configuration names."""
    try:
        config = read_operators_config(config_path).config
    except (ConfigErrors, OSError):
        words = f"{config_path} cannot be read as a configuration"
        yield Finding(Severity.FAIL, "configuration", words, f"bentpipe check {config_path} says why")
        return
    yield from _certificates(config)
    yield from _rsa_keys(config)


def _certificates(config: Config) -> Iterator[Finding]:
    concerns = list(tls_concerns(config))
    for concern in concerns:
        yield Finding(Severity.FAIL if concern.fatal else Severity.WARN, SUBJECT, f"{concern.where}: {concern.message}")
    if concerns:
        return
    ends = certificate_ends(config)
    if not ends:
        yield Finding(Severity.OK, SUBJECT, "the configuration names none")
        return
    first = min(ends, key=ends.__getitem__)
    day = datetime.datetime.fromtimestamp(ends[first], datetime.UTC)
    yield Finding(Severity.OK, SUBJECT, f"{len(ends)} files; the first to end is {first}, at {day:%Y-%m-%d %H:%M} UTC")


def _rsa_keys(config: Config) -> Iterator[Finding]:
    for listener in config.listener:
        for pair in (listener.tls, *listener.tls.more) if listener.tls is not None else ():
            try:
                key = read_chain(pair.certificate)[0].public_key()
            except ValueError:
                continue  # tls_concerns has said it
            if isinstance(key, rsa.RSAPublicKey):
                yield Finding(Severity.WARN, "server key", f"{pair.certificate} is for an RSA key", RSA_REMEDY)
