"""Who asks, and for which satellite. Pure: a request, a server name and a certificate go in, a claim comes out.

There are two questions, each with two sources. The sources of one question never overrule each other:

    which satellite?  metadata `satellite_org` + `satellite_name`  |  SNI `NAME.ORG.<satellite_domain>`
    who asks?         `satellite_token` or `authorization: Bearer` |  a client certificate that [[certificate]] maps

Each of the three keys may be spelt with dashes instead of underscores.

Rules. Any destination may come with any proof, and at least one of each is needed. If both destinations are given, they must
be the same satellite. Every proof that is shown must hold and must grant the satellite: a bad token is refused even if the
certificate is good. A certificate that no entry maps does not prove anything; it only opened the TLS port. A certificate
that two entries map is refused, because it does not say which of the two principals it stands for.
"""

import dataclasses
import functools

from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.accounts.principal import Principal
from bentpipe.daemon.connections.server_name import named_satellites, parse_server_name
from bentpipe.daemon.errors import InvalidMetadata, Unauthenticated
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.events import HeaderList
from bentpipe.proto.request import NAME_KEY, ORG_KEY, TOKEN_KEY, RouteRequest, both_spellings, names_satellite

NO_DESTINATION = f"the metadata {both_spellings(ORG_KEY)} and {both_spellings(NAME_KEY)} are missing"
OTHER_DESTINATION = "the metadata and the TLS server name are for different satellites"
NO_PROOF = f"the {both_spellings(TOKEN_KEY)} is missing, and no client certificate that is known here was shown"
NOTHING = "the metadata satellite_org, satellite_name and satellite_token are missing (or the same with dashes)"


SETS_OF_CREDENTIALS = 1024
"""How many principals' sets of credentials are kept to be shared."""


@dataclasses.dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What the client said in the TLS handshake; both are None on a plaintext port."""

    server_name: str | None = None
    certificate_der: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A satellite, and all principals that the proofs stand for: each of them must be allowed to use it."""

    key: SatelliteKey
    principals: tuple[Principal, ...]
    request: RouteRequest
    tls: TlsIdentity
    version: int
    """The version of the tables in which the proofs were found."""

    @property
    def payer(self) -> str:
        """The principal whose quota the connection is charged to: the token's, if a token was shown."""
        return self.principals[0].name

    @property
    def credentials(self) -> frozenset[str]:
        """Which credentials they are, for cuts."""
        return _set_of(tuple(principal.credentials for principal in self.principals))

    @property
    def who(self) -> str:
        """The principals' names, for logs."""
        if len(self.principals) == 1:
            return self.principals[0].name
        return "+".join(sorted({principal.name for principal in self.principals}))


@functools.lru_cache(maxsize=SETS_OF_CREDENTIALS)
def _set_of(credentials: tuple[tuple[str, ...], ...]) -> frozenset[str]:
    """One object for all connections of the same credentials: each splice keeps it, and a set has 216 bytes."""
    return frozenset(credential for each in credentials for credential in each)


def names_any_satellite(headers: HeaderList, tls: TlsIdentity, domain: str | None) -> bool:
    """Whether a request names a satellite, well or badly: by its metadata, or by the server name of its connection."""
    return names_satellite(headers) or parse_server_name(tls.server_name, domain) is not None


class Identities:
    """Makes claims from the sources."""

    def __init__(self, admission: Admission, certificates: Certificates) -> None:
        self._admission = admission
        self._certificates = certificates
        self._counted: tuple[frozenset[str] | None, int] = (None, 0)

    @property
    def principal_count(self) -> int:
        """How many principals there are; a token and a certificate with the same name are one principal."""
        known = self._admission.names
        if known is not self._counted[0]:
            self._counted = known, len(known | self._certificates.names)
        return self._counted[1]

    def identify(self, request: RouteRequest, tls: TlsIdentity, domain: str | None) -> Claim:
        """Say which satellite is asked for, and by which principals. Raises InvalidMetadata, Unauthenticated."""
        if request.token is None and tls.certificate_der is None and not self.names_satellite(request, tls, domain):
            raise Unauthenticated(NOTHING)  # a stranger, who may not even know what this port is
        key = self.destination(request, tls, domain)
        return Claim(key, self.principals(request, tls), request, tls, self._admission.version)

    def check_again(self, claim: Claim) -> None:
        """Check a claim once more, by the tables as they are now. Raises Unauthenticated, NoSuchSatellite."""
        if not self._admission.holds(claim.version, claim.principals):
            now = dataclasses.replace(claim, principals=self.principals(claim.request, claim.tls))
            self.authorize(now)

    def admits(self, principal: str, credentials: frozenset[str], key: SatelliteKey) -> bool:
        """Whether a token of the principal with these credentials may be used for the satellite, by the tables of now."""
        return any(
            frozenset(each.credentials) == credentials and self._admission.may(each, Scope.USE, key.org, key.name)
            for each in self._admission.tokens_of(principal)
        )

    def names_satellite(self, request: RouteRequest, tls: TlsIdentity, domain: str | None) -> bool:
        """Whether the request names a satellite."""
        return bool(named_satellites(request, tls.server_name, domain))

    def destination(self, request: RouteRequest, tls: TlsIdentity, domain: str | None) -> SatelliteKey:
        """Say which satellite is asked for. Raises InvalidMetadata."""
        named = named_satellites(request, tls.server_name, domain)
        if len(named) > 1:
            raise InvalidMetadata(OTHER_DESTINATION)
        if not named:
            raise InvalidMetadata(_no_destination(tls.server_name, domain))
        return next(iter(named))

    def principals(self, request: RouteRequest, tls: TlsIdentity) -> tuple[Principal, ...]:
        """Check every proof that is shown. Raises Unauthenticated."""
        found: list[Principal] = []
        if request.token is not None:
            found.append(self._admission.authenticate(request.token))
        if tls.certificate_der is not None:
            principal = self._certificates.find(tls.certificate_der)
            if principal is not None:
                found.append(principal)
        if not found:
            raise Unauthenticated(NO_PROOF)
        return tuple(found)

    def authorize(self, claim: Claim) -> None:
        """Check that every principal of the claim may use the satellite. Raises NoSuchSatellite."""
        for principal in claim.principals:
            self._admission.authorize(principal, claim.key)


def _no_destination(server_name: str | None, domain: str | None) -> str:
    """Say why no satellite is named; the name is the client's own, from its TLS handshake."""
    if server_name is None or domain is None:
        return NO_DESTINATION
    return f"{NO_DESTINATION}, and the server name {server_name!r} is not NAME.ORG.{domain}"
