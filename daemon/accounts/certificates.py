"""Which principal a client certificate stands for. Pure: OpenSSL has verified the chain before.

A certificate that no entry maps proves nothing. One that two entries map is refused, since it is unclear which it stands
for.
"""

import hashlib
from collections.abc import Iterable, Mapping

from cryptography import x509

from bentpipe.config.accounts import CertificateSection
from bentpipe.daemon.accounts.principal import Principal, scopes_of
from bentpipe.daemon.errors import Unauthenticated
from bentpipe.daemon.model import Grant

AMBIGUOUS = "the client certificate stands for more than one principal"


class Certificates:
    """The table of client certificates: fingerprints and subject alternative names. Their chains OpenSSL has verified."""

    def __init__(self, sections: Iterable[CertificateSection]) -> None:
        self._principals: Mapping[str, Principal] = {}
        self.replace(sections)

    def replace(self, sections: Iterable[CertificateSection]) -> None:
        """Know these from now on."""
        self._principals = {
            section.shown: Principal(
                section.name,
                tuple(map(Grant.parse, section.grants)),
                scopes_of(section.scopes),
                (f"certificate:{section.name}",),
            )
            for section in sections
        }

    @property
    def names(self) -> frozenset[str]:
        """The names of all principals here."""
        return frozenset(principal.name for principal in self._principals.values())

    def find(self, der: bytes) -> Principal | None:
        """Find the principal that a certificate stands for. Raises Unauthenticated if there are several."""
        if not self._principals:
            return None
        shown = {"sha256:" + hashlib.sha256(der).hexdigest(), *subject_names(der)}
        found = [self._principals[name] for name in shown if name in self._principals]
        if len(found) > 1:
            raise Unauthenticated(AMBIGUOUS)
        return found[0] if found else None


def subject_names(der: bytes) -> set[str]:
    """The subject alternative names as the configuration writes them: `DNS:…`, `URI:…`, `EMAIL:…` (RFC 5280 §4.2.1.6).

    The common name is not read: RFC 6125 §6.4.4 has it deprecated, and CAs check it least.
    """
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return set()
    kinds = (("DNS:", x509.DNSName), ("URI:", x509.UniformResourceIdentifier), ("EMAIL:", x509.RFC822Name))
    return {_normal(prefix + name.value) for name in names.value for prefix, kind in kinds if isinstance(name, kind)}


def _normal(name: str) -> str:
    """DNS names compare without case. The other kinds compare exactly, which can only refuse too much."""
    return name.lower().replace("dns:", "DNS:", 1) if name.startswith("DNS:") else name
