"""Looks at the certificates that clients and satellites are shown, as they will look: do the key and its certificate belong
together, since when and until when.

The engine reads the same files with OpenSSL, which says of a wrong pair only that a key does not fit. Data planes look at
their files by this module. It knows nothing of satellites' names or of our own authority: see `preflight_tls`.
"""

import contextlib
import datetime
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from bentpipe.config.model import Config, KeyPairSection, ServerTlsSection
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.preflight_crl import crl_concerns, crls_end
from bentpipe.daemon.service.read_chain import read_chain

RENEW_AT = 2 / 3
"""The share of its life after which a certificate should have been renewed: certbot and cert-manager renew at this age."""


def shown_concerns(config: Config) -> Iterator[Concern]:
    """Look at every certificate that a listener or a satellite's section names."""
    for index, listener in enumerate(config.listener):
        if listener.tls is not None:
            yield from _listener_concerns(f"listener[{index}].tls", listener.tls)
    machines = [
        *((f"satellite[{index}].tls", machine.tls) for index, machine in enumerate(config.satellite)),
        *((f"machine_type[{index}].tls", machine.tls) for index, machine in enumerate(config.machine_type)),
    ]
    for where, trust in machines:
        if trust is None or trust.ca is None:
            continue
        yield from _authority_concerns(f"{where}.ca", trust.ca)
        if trust.certificate is not None and trust.key is not None:
            yield from _pair_concerns(where, trust.certificate, trust.key)


def look_at_shown(config: Config) -> tuple[Mapping[str, float], list[Concern]]:
    """For the watch of a data plane."""
    return certificate_ends(config), list(shown_concerns(config))


def certificate_ends(config: Config) -> dict[str, float]:
    """Until when the certificates that the daemon shows hold, and the CRLs, by their file, in seconds since the epoch."""
    files = [
        *(pair.certificate for each in config.listener if each.tls is not None for pair in (each.tls, *each.tls.more)),
        *(
            each.tls.certificate
            for each in config.machines
            if each.tls is not None and each.tls.certificate is not None
        ),
    ]
    ends = {}
    for path in files:
        with contextlib.suppress(ValueError):  # shown_concerns says why it cannot be read
            ends[str(path)] = read_chain(path)[0].not_valid_after_utc.timestamp()
    for each in config.listener:
        if each.tls is not None and each.tls.client_crl is not None:
            with contextlib.suppress(ValueError):
                if (until := crls_end(each.tls.client_crl)) is not None:
                    ends[str(each.tls.client_crl)] = until
    return ends


def pairs_of(where: str, section: ServerTlsSection) -> list[tuple[str, KeyPairSection]]:
    """Every certificate of a listener with its key, and where it is in the configuration."""
    return [(where, section), *((f"{where}.more[{number}]", more) for number, more in enumerate(section.more))]


def _listener_concerns(where: str, section: ServerTlsSection) -> Iterator[Concern]:
    for place, pair in pairs_of(where, section):
        yield from _pair_concerns(place, pair.certificate, pair.key)
        yield from _server_concerns(f"{place}.certificate", pair.certificate)
    if section.client_ca is not None:
        yield from _authority_concerns(f"{where}.client_ca", section.client_ca)
    if section.client_crl is not None and section.client_ca is not None:
        yield from crl_concerns(f"{where}.client_crl", section.client_crl, section.client_ca)


def _pair_concerns(where: str, certificate: Path, key: Path) -> Iterator[Concern]:
    """Whether the certificate and the key can be read, belong together, and hold today."""
    try:
        chain = read_chain(certificate)
    except ValueError as exc:
        yield Concern(f"{where}.certificate", f"{certificate}: {exc}", fatal=True)
        return
    try:
        private = _read_key(key)
    except ValueError as exc:
        yield Concern(f"{where}.key", f"{key}: {exc}", fatal=True)
    else:
        if _public_bytes(private) != _certificate_bytes(chain[0]):
            yield Concern(
                f"{where}.key",
                f"{key} is not the key of {certificate}: give the two that were made together",
                fatal=True,
            )
    yield from _date_concerns(f"{where}.certificate", certificate, chain[0])
    for below, above in itertools.pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature):
            words = f"{certificate}: {_name(above)} follows {_name(below)} and did not sign it; clients may refuse the chain"
            yield Concern(f"{where}.certificate", words, fatal=False)


def _server_concerns(where: str, certificate: Path) -> Iterator[Concern]:
    """What makes clients refuse a server's certificate whatever its dates."""
    try:
        leaf = read_chain(certificate)[0]
    except ValueError:
        return  # _pair_concerns has said it
    if not names_of(leaf):
        yield Concern(
            where, f"{certificate} has no subject alternative name; clients refuse it (RFC 9525)", fatal=False
        )
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usages):
        yield Concern(where, f"{certificate} is not for servers (extended key usage); clients refuse it", fatal=False)


def _authority_concerns(where: str, path: Path) -> Iterator[Concern]:
    try:
        authorities = read_chain(path)
    except ValueError as exc:
        yield Concern(where, f"{path}: {exc}", fatal=True)
        return
    for authority in authorities:
        try:
            is_authority = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, ValueError):
            is_authority = authority.issuer == authority.subject  # version 1, as old roots are
        if not is_authority:
            words = f"{path}: {_name(authority)} is not a certificate authority; nothing that it signs is accepted"
            yield Concern(where, words, fatal=False)
        yield from _date_concerns(where, path, authority)


def _date_concerns(where: str, path: Path, certificate: x509.Certificate) -> Iterator[Concern]:
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= ends:
        yield Concern(
            where,
            f"{path}: {_name(certificate)} expired on {ends:%Y-%m-%d %H:%M} UTC; clients refuse it: renew it",
            fatal=False,
        )
    elif now < begins:
        words = f"{path}: {_name(certificate)} holds only from {begins:%Y-%m-%d %H:%M} UTC; is this host's clock right?"
        yield Concern(where, words, fatal=False)
    elif (now - begins) > RENEW_AT * (ends - begins):
        days = (ends - now).days
        words = f"{path}: {_name(certificate)} expires on {ends:%Y-%m-%d %H:%M} UTC, in {days} days; renew it"
        yield Concern(where, words, fatal=False)


def _read_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as exc:
        raise ValueError(exc.strerror or str(exc)) from exc
    except TypeError as exc:
        raise ValueError("the key is encrypted; bentpipe cannot ask for its passphrase") from exc
    except Exception as exc:  # also UnsupportedAlgorithm, which is not a ValueError
        raise ValueError("has no private key in PEM form (-----BEGIN PRIVATE KEY-----)") from exc


def _public_bytes(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _certificate_bytes(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def names_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a server's certificate is for, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return set()
    return {str(name.value).lower() for name in found if isinstance(name, x509.DNSName | x509.IPAddress)}


def _name(certificate: x509.Certificate) -> str:
    """The name by which an operator knows a certificate."""
    subject = certificate.subject.rfc4514_string()
    return f"certificate {subject!r}" if subject else f"certificate {sorted(names_of(certificate))[:1]}"
