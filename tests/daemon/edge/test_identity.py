"""Every combination of the sources: who may be combined with what, and that nothing weak overrules anything."""

import datetime
import hashlib
import itertools

import pytest
from cryptography import x509

from beds.client_certificates import certificate
from bentpipe.config.accounts import CertificateSection, TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates, subject_names
from bentpipe.daemon.connections.server_name import parse_server_name
from bentpipe.daemon.edge.identity import Identities, TlsIdentity
from bentpipe.daemon.errors import BentpipeError, InvalidMetadata, NoSuchSatellite, Unauthenticated
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.request import MetadataError, RouteRequest, parse_request

DOMAIN = "sat.example"
ONE, TWO = SatelliteKey("acme", "one"), SatelliteKey("acme", "two")


KNOWN = certificate(x509.DNSName("CI.example"))
PINNED = certificate(x509.DNSName("laptop.example"))
BOTH = certificate(x509.DNSName("ci.example"), x509.RFC822Name("dev@example.com"))
STRANGER = certificate(x509.DNSName("stranger.example"))


def hashed(secret: bytes) -> str:
    return "sha256:" + hashlib.sha256(secret).hexdigest()


@pytest.fixture
def identities() -> Identities:
    tokens = [
        TokenSection(name="all", hash=hashed(b"all"), grants=("acme/*",)),
        TokenSection(name="two-only", hash=hashed(b"two"), grants=("acme/two",)),
    ]
    certificates = [
        CertificateSection(name="ci", san="DNS:ci.example", grants=("acme/one",)),
        CertificateSection(name="dev", san="EMAIL:dev@example.com", grants=("acme/*",)),
        CertificateSection(name="laptop", fingerprint=hashed(PINNED), grants=("acme/*",)),
    ]
    return Identities(Admission(tokens), Certificates(certificates))


def outcome(
    identities: Identities, metadata: SatelliteKey | None, sni: str | None, token: str | None, der: bytes | None
) -> SatelliteKey | type[BentpipeError]:
    request = RouteRequest("/s/m", None if metadata is None else (metadata.org, metadata.name), token)
    try:
        claim = identities.identify(request, TlsIdentity(sni, der), DOMAIN)
        identities.authorize(claim)
    except BentpipeError as exc:
        return type(exc)
    return claim.key


DESTINATIONS = {
    (None, None): InvalidMetadata,
    (None, "edge.example"): InvalidMetadata,
    (ONE, None): ONE,
    (ONE, "edge.example"): ONE,
    (None, "one.acme.sat.example"): ONE,
    (ONE, "one.acme.sat.example"): ONE,
    (TWO, "one.acme.sat.example"): InvalidMetadata,
}
PROOFS = {
    (None, None): Unauthenticated,
    (None, STRANGER): Unauthenticated,
    (None, KNOWN): ONE,
    (None, PINNED): ONE,
    (None, BOTH): Unauthenticated,
    ("all", None): ONE,
    ("all", STRANGER): ONE,
    ("all", KNOWN): ONE,
    ("two", None): NoSuchSatellite,
    ("two", KNOWN): NoSuchSatellite,
    ("wrong", None): Unauthenticated,
    ("wrong", KNOWN): Unauthenticated,
    ("wrong", PINNED): Unauthenticated,
    ("", KNOWN): Unauthenticated,
}


@pytest.mark.parametrize(("destination", "proof"), [*itertools.product(DESTINATIONS, PROOFS)])
def test_every_combination(
    identities: Identities, destination: tuple[SatelliteKey | None, str | None], proof: tuple[str | None, bytes | None]
) -> None:
    expected = DESTINATIONS[destination]
    if proof == (None, None) and destination in ((None, None), (None, "edge.example")):
        expected = Unauthenticated  # a stranger, who says nothing at all
    if expected is ONE:
        expected = PROOFS[proof]
    assert outcome(identities, *destination, *proof) == expected


def test_a_certificate_for_one_satellite_does_not_reach_another(identities: Identities) -> None:
    assert outcome(identities, TWO, None, None, KNOWN) is NoSuchSatellite
    assert outcome(identities, TWO, None, "all", KNOWN) is NoSuchSatellite


def test_the_claim_names_everybody(identities: Identities) -> None:
    claim = identities.identify(RouteRequest("/s/m", ("acme", "one"), "all"), TlsIdentity(None, KNOWN), None)
    assert claim.who == "all+ci"


@pytest.mark.parametrize(
    ("server_name", "key"),
    [
        ("one.acme.sat.example", ONE),
        ("One.ACME.Sat.Example.", ONE),
        ("acme.sat.example", None),
        ("a.one.acme.sat.example", None),
        ("sat.example", None),
        ("one.acme.sat.example.evil.example", None),
        ("one.acmesat.example", None),
        (".acme.sat.example", None),
        ("one..sat.example", None),
        (None, None),
    ],
)
def test_server_names(server_name: str | None, key: SatelliteKey | None) -> None:
    assert parse_server_name(server_name, DOMAIN) == key
    assert parse_server_name(server_name, None) is None


def test_names_that_only_case_tells_apart_are_two(identities: Identities) -> None:
    """By metadata each is reached; by server name, which DNS has in lower case, only the one in lower case."""
    upper, lower = SatelliteKey("Acme", "One"), SatelliteKey("acme", "one")
    for key in (upper, lower):
        request = RouteRequest("/s/m", (key.org, key.name), "all")
        assert identities.destination(request, TlsIdentity(), DOMAIN) == key
    for server_name in ("One.Acme.sat.example", "one.acme.sat.example"):
        assert parse_server_name(server_name, DOMAIN) == lower
        request = RouteRequest("/s/m", (upper.org, upper.name), "all")
        with pytest.raises(InvalidMetadata):
            identities.destination(request, TlsIdentity(server_name), DOMAIN)


@pytest.mark.parametrize("der", [b"", b"\x30\x82", certificate()])
def test_a_certificate_without_names_has_none(der: bytes) -> None:
    assert subject_names(der) == set()


def test_kinds_of_names() -> None:
    der = certificate(x509.DNSName("A.example"), x509.UniformResourceIdentifier("spiffe://A"), x509.RFC822Name("D@e.f"))
    assert subject_names(der) == {"DNS:a.example", "URI:spiffe://A", "EMAIL:D@e.f"}


def test_bearer_is_read_as_the_token() -> None:
    headers = ((b":method", b"POST"), (b":path", b"/s/m"))
    assert parse_request((*headers, (b"authorization", b"Bearer t"))).token == "t"
    assert parse_request((*headers, (b"authorization", b"bearer t"), (b"satellite_token", b"t"))).token == "t"
    assert parse_request((*headers, (b"authorization", b"Basic dDp0"))).token is None


def spelt(fields: tuple[tuple[str, str], ...]) -> RouteRequest:
    pairs = tuple((name.encode(), value.encode()) for name, value in fields)
    return parse_request(((b":method", b"POST"), (b":path", b"/s/m"), *pairs))


@pytest.mark.parametrize("org", [("satellite_org",), ("satellite-org",), ("satellite_org", "satellite-org")])
@pytest.mark.parametrize("name", [("satellite_name",), ("satellite-name",), ("satellite-name", "satellite_name")])
@pytest.mark.parametrize("token", [("satellite_token",), ("satellite-token",), ("satellite_token", "satellite-token")])
def test_either_spelling_or_both(org: tuple[str, ...], name: tuple[str, ...], token: tuple[str, ...]) -> None:
    given = [(key, value) for keys, value in ((org, "acme"), (name, "one"), (token, "t")) for key in keys]
    assert spelt(tuple(given)) == RouteRequest("/s/m", ("acme", "one"), "t")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((("satellite_org", "a"), ("satellite-org", "b"), ("satellite_name", "n")), "differ"),
        ((("satellite_org", "a"), ("satellite-name", "n"), ("satellite_name", "m")), "differ"),
        ((("satellite_token", "a"), ("satellite-token", "b")), "differ"),
        ((("satellite-token", "a"), ("authorization", "Bearer b")), "different tokens"),
        ((("satellite-org", "a"), ("satellite-org", "a"), ("satellite-name", "n")), "given 2 times"),
        ((("satellite-token", "a"), ("satellite-token", "a")), "given 2 times"),
        ((("satellite-org", "a"),), "satellite_name (or satellite-name) is missing"),
        ((("satellite-name", "n"),), "satellite_org (or satellite-org) is missing"),
        ((("satellite-org", "-a"), ("satellite-name", "n")), "malformed"),
    ],
)
def test_spellings_that_cannot_be_used(fields: tuple[tuple[str, str], ...], words: str) -> None:
    with pytest.raises(MetadataError) as error:
        spelt(fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        ((b"authorization", b"Bearer a"), (b"satellite_token", b"b")),
        ((b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")),
        ((b"satellite_name", b"one"),),
        ((b"satellite_org", b"acme"),),
        ((b"satellite_token", "é".encode()),),
    ],
)
def test_metadata_that_cannot_be_used(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(MetadataError):
        parse_request(((b":method", b"POST"), (b":path", b"/s/m"), *fields))


def test_a_claim_ends_with_its_token() -> None:
    now = [100.0]
    ends = datetime.datetime.fromtimestamp(200, datetime.UTC)
    section = TokenSection(name="t", hash=hashed(b"t"), grants=("acme/*",), expires=ends)
    identities = Identities(Admission([section], now=lambda: now[0]), Certificates([]))
    claim = identities.identify(RouteRequest("/s/m", ("acme", "one"), "t"), TlsIdentity(), None)
    identities.check_again(claim)
    now[0] = 200.0
    with pytest.raises(Unauthenticated, match="expired"):
        identities.check_again(claim)


@pytest.mark.parametrize("scopes", [("use",), ("manage",), ("use", "manage")])
def test_a_certificate_has_scopes(scopes: tuple[str, ...]) -> None:
    section = CertificateSection.model_validate(
        {"name": "dev", "fingerprint": hashed(PINNED), "grants": ["acme/*"], "scopes": scopes}
    )
    principal = Certificates([section]).find(PINNED)
    assert principal is not None
    assert {scope.value for scope in principal.scopes} == {"use", *scopes}
    assert principal.credentials == ("certificate:dev",)


@pytest.mark.parametrize(
    ("server_name", "domain", "words"),
    [
        ("one.acme.other.example", DOMAIN, "the server name 'one.acme.other.example' is not NAME.ORG.sat.example"),
        ("edge.sat.example", DOMAIN, "the server name 'edge.sat.example' is not NAME.ORG.sat.example"),
        (None, DOMAIN, None),
        ("one.acme.other.example", None, None),
    ],
)
def test_a_server_name_that_is_not_a_satellites_is_told(
    identities: Identities, server_name: str | None, domain: str | None, words: str | None
) -> None:
    with pytest.raises(InvalidMetadata) as error:
        identities.identify(RouteRequest("/s/m", None, "all"), TlsIdentity(server_name), domain)
    assert "are missing" in str(error.value)
    assert ("the server name" in str(error.value)) is (words is not None)
    assert words is None or words in str(error.value)
