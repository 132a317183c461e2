"""Who is asking, and for which satellite. Pure: a request, a server name and a certificate in, a claim out.

Two questions, each with two sources, and the sources of one question never overrule each other:

    which satellite?  metadata `satellite_org` + `satellite_name`  |  SNI `NAME.ORG.<satellite_domain>`
    who asks?         `satellite_token` or `authorization: Bearer` |  a client certificate that [[certificate]] maps

The three keys may be spelt with dashes, each for itself.

Rules. Any destination goes with any proof. At least one of each is needed. If both destinations are given they must be
the same satellite. Every proof that is shown must hold and must grant the satellite: a bad token beside a good
certificate is refused, never passed over. A certificate that no entry maps is no proof; it opened the TLS port, no more.
One that two entries map is refused: nobody could say which of the two it stands for.
"""

import dataclasses

from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.accounts.principal import Principal
from bentpipe.daemon.errors import InvalidMetadata, Unauthenticated
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.request import NAME_KEY, ORG_KEY, TOKEN_KEY, RouteRequest, both_spellings

NO_DESTINATION = f"the metadata {both_spellings(ORG_KEY)} and {both_spellings(NAME_KEY)} are missing"
OTHER_DESTINATION = "the metadata and the TLS server name are for different satellites"
NO_PROOF = f"the {both_spellings(TOKEN_KEY)} is missing, and no client certificate that is known here was shown"
NOTHING = "the metadata satellite_org, satellite_name and satellite_token are missing (or the same with dashes)"


@dataclasses.dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What the client's side of the TLS handshake said; both None on a plaintext port."""

    server_name: str | None = None
    certificate_der: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A satellite, and everybody whom the proofs stand for: each of them must be allowed to use it."""

    key: SatelliteKey
    principals: tuple[Principal, ...]
    request: RouteRequest
    tls: TlsIdentity
    version: int
    """Of the tables that the proofs were looked up in."""

    @property
    def payer(self) -> str:
        """The principal whose account the connection is on: the token's, if one was shown."""
        return self.principals[0].name

    @property
    def credentials(self) -> frozenset[str]:
        """Which credentials they are, for cuts."""
        return frozenset(credential for principal in self.principals for credential in principal.credentials)

    @property
    def who(self) -> str:
        """The principals' names, for logs."""
        return "+".join(sorted({principal.name for principal in self.principals}))


def parse_server_name(server_name: str | None, domain: str | None) -> SatelliteKey | None:
    """Read `NAME.ORG.<domain>`. None if it is another name: the port may well have one of its own.

    DNS ignores case and clients send what they like, so the satellite's own name must be in lower case, without a dot.
    """
    if server_name is None or domain is None:
        return None
    labels, dot, rest = server_name.lower().removesuffix(".").partition("." + domain)
    name, middle, org = labels.partition(".")
    if not dot or rest or not middle or not name or not org or "." in org:
        return None
    return SatelliteKey(org, name)


class Identities:
    """Puts the sources together."""

    def __init__(self, admission: Admission, certificates: Certificates) -> None:
        self._admission = admission
        self._certificates = certificates
        self._counted: tuple[frozenset[str] | None, int] = (None, 0)

    @property
    def principal_count(self) -> int:
        """How many principals there are; a token and a certificate of one name are one."""
        known = self._admission.names
        if known is not self._counted[0]:
            self._counted = known, len(known | self._certificates.names)
        return self._counted[1]

    def identify(self, request: RouteRequest, tls: TlsIdentity, domain: str | None) -> Claim:
        """Say which satellite is asked for, and by whom. Raises InvalidMetadata, Unauthenticated."""
        if request.token is None and tls.certificate_der is None and not self.names_satellite(request, tls, domain):
            raise Unauthenticated(NOTHING)  # a stranger, who may not even know where this is
        key = self.destination(request, tls, domain)
        return Claim(key, self.principals(request, tls), request, tls, self._admission.version)

    def check_again(self, claim: Claim) -> None:
        """Check what was authorized a while ago by the tables as they are now. Raises Unauthenticated, NoSuchSatellite."""
        if not self._admission.holds(claim.version, claim.principals):
            now = dataclasses.replace(claim, principals=self.principals(claim.request, claim.tls))
            self.authorize(now)

    def names_satellite(self, request: RouteRequest, tls: TlsIdentity, domain: str | None) -> bool:
        """Whether the request is for any satellite at all."""
        return request.satellite is not None or parse_server_name(tls.server_name, domain) is not None

    def destination(self, request: RouteRequest, tls: TlsIdentity, domain: str | None) -> SatelliteKey:
        """Say which satellite is asked for. Raises InvalidMetadata."""
        by_name = parse_server_name(tls.server_name, domain)
        by_metadata = None if request.satellite is None else SatelliteKey(*request.satellite)
        if by_name is not None and by_metadata is not None and by_name != by_metadata:
            raise InvalidMetadata(OTHER_DESTINATION)
        key = by_metadata or by_name
        if key is None:
            raise InvalidMetadata(NO_DESTINATION)
        return key

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
        """Check that everybody in the claim may use the satellite. Raises NoSuchSatellite."""
        for principal in claim.principals:
            self._admission.authorize(principal, claim.key)
