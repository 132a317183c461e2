"""If the data plane admits a client by its tables, the control plane would, as the same principal to the same satellite."""

import hashlib
import random

import pytest

from beds.fuzz.asked import asked_in_c
from beds.fuzz.requests import Asked
from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.dataplane.admission_tables import AdmissionTables, Admitted
from bentpipe.daemon.dataplane.first_requests import read_in_python
from bentpipe.daemon.edge.grant_table import grant_records
from bentpipe.daemon.edge.identity import Identities, TlsIdentity
from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.model import Grant, SatelliteKey
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.records import LINK_ID
from bentpipe.daemon.registry.accounts import StoredAccounts, StoredOrg
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.native.request import TokenRequest
from bentpipe.proto.api_paths import API_PATHS
from bentpipe.proto.events import HeaderList
from bentpipe.proto.request import MetadataError, parse_request

SECRETS = ("", "s1", "s2", "s3", "s4")
ORGS, NAMES = ("acme", "beta", "gone"), ("one", "one2", "two", "b-1")
GRANTS = ("acme/*", "acme/one", "acme/b-*", "beta/one*", "gone/*", "beta/*")
DOMAIN = "sat.example"
RUNS, REQUESTS = 150, 60
NOW = 1_000_000.0


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def admission_of(chance: random.Random) -> Admission:
    """Tokens of the configuration and of the store, the same in both at times; an org that is revoked."""

    def grants() -> tuple[str, ...]:
        return tuple(chance.sample(GRANTS, chance.randrange(1, 4)))

    admission = Admission(
        [
            TokenSection(name=f"c{number}", hash=f"sha256:{digest_of(secret)}", grants=grants(), principal="alice")
            for number, secret in enumerate(chance.sample(SECRETS, 3))
        ],
        now=lambda: NOW,
    )
    stored = [
        StoredToken(
            *(f"s{number}", f"sha256:{digest_of(secret)}", grants(), 0),
            scopes=chance.choice((("use",), ("manage",), ())),
            expires_us=chance.choice((None, int((NOW - 1) * 1e6), int((NOW + 1) * 1e6))),
        )
        for number, secret in enumerate(chance.sample(SECRETS, 3))
    ]
    admission.replace_stored(stored, StoredAccounts(orgs=(StoredOrg("gone", 0, 1),)))
    return admission


def tables_of(admission: Admission) -> AdmissionTables:
    """Everything is open, and there is credit for everybody."""
    tables, records = AdmissionTables(), grant_records(admission)
    for record in records:
        tables.add_token(record)
        tables.credit(s.CreditRecord(LINK_ID, 1 << 30, record.principal))
    tables.take_table(s.GrantsRecord(LINK_ID, 1, len(records), 1, 0))
    number = 0
    for org in ORGS:
        for name in NAMES:
            number += 1
            tables.open_gate(s.GateRecord(number, 1, 1_000_000, False, 0, org, name, "127.0.0.1", "", ""))
    return tables


def request_of(chance: random.Random) -> HeaderList:
    fields = [
        (b":method", chance.choice((b"POST", b"POST", b"POST", b"GET"))),
        (b":path", chance.choice((b"/a.B/C", b"/a.B/C", b"/a.B/C", b"/api.public.compute.Compute/GetSatellite"))),
    ]
    for key, values in ((b"satellite_org", ORGS), (b"satellite_name", NAMES), (b"satellite_token", SECRETS)):
        for _ in range(chance.choice((0, 1, 1, 1, 1, 1, 2))):
            spelt = key if chance.random() < 0.7 else key.replace(b"_", b"-")
            fields.append((spelt, chance.choice(values).encode()))
    if chance.random() < 0.2:
        fields.append((b"authorization", b"Bearer " + chance.choice(SECRETS).encode()))
    return tuple(fields)


def read_both(headers: HeaderList, server_name: str | None, domain: str | None) -> TokenRequest | None:
    """Read a request in C and in Python, which agree."""
    read = read_in_python(headers, server_name, Port(satellite_domain=domain, serves_api=True))
    assert read == asked_in_c(Asked(headers, server_name, domain))
    return read


def test_the_tables_admit_nobody_whom_the_control_plane_refuses() -> None:
    chance = random.Random(1)
    admitted = 0
    for _ in range(RUNS):
        admission = admission_of(chance)
        tables, identities = tables_of(admission), Identities(admission, Certificates(()))
        for _ in range(REQUESTS):
            headers = request_of(chance)
            server_name = chance.choice((None, None, f"one.acme.{DOMAIN}", "host.example", f"x.{DOMAIN}"))
            read = read_both(headers, server_name, DOMAIN)
            if read is None:
                continue
            key = SatelliteKey(read.org, read.name)
            found = tables.admit(read.digest, key, 0, int(NOW * 1e6))
            if not isinstance(found, Admitted):
                continue
            admitted += 1
            assert not dict(headers)[b":path"].startswith(API_PATHS)
            claim = identities.identify(parse_request(headers), TlsIdentity(server_name), DOMAIN)
            identities.authorize(claim)
            assert (claim.key, claim.who, claim.payer) == (key, found.token.principal, found.token.principal)
            assert claim.credentials == found.token.credentials
            assert identities.admits(claim.who, claim.credentials, key)
    assert admitted > RUNS


def test_the_tables_admit_most_whom_the_control_plane_accepts() -> None:
    """Else the test before this one could pass with tables that admit nobody of some kind."""
    chance = random.Random(2)
    missed = accepted = 0
    for _ in range(RUNS):
        admission = admission_of(chance)
        tables, identities = tables_of(admission), Identities(admission, Certificates(()))
        for _ in range(REQUESTS):
            headers = request_of(chance)
            try:
                claim = identities.identify(parse_request(headers), TlsIdentity(), None)
                identities.authorize(claim)
            except (BentpipeError, MetadataError):
                continue
            if dict(headers)[b":path"].startswith(API_PATHS):
                continue
            accepted += 1
            read = read_both(headers, None, None)
            assert read is not None
            found = tables.admit(read.digest, SatelliteKey(read.org, read.name), 0, int(NOW * 1e6))
            missed += not isinstance(found, Admitted)
    assert accepted > RUNS
    assert missed == 0


@pytest.mark.parametrize("text", GRANTS)
def test_a_grant_is_written_as_it_is_read(text: str) -> None:
    assert str(Grant.parse(text)) == text


def test_changes_of_the_tables_are_told() -> None:
    told = 0

    def changed() -> None:
        nonlocal told
        told += 1

    admission = Admission([])
    admission.on_change(changed)
    admission.replace_configured([TokenSection(name="one", hash=f"sha256:{digest_of('s1')}", grants=("acme/*",))], ())
    assert told == 1
    assert [principal.name for principal in admission.tokens().values()] == ["one"]
    admission.replace_stored([])
    assert told == 1
