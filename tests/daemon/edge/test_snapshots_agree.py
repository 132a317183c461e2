"""If the data plane admits a client by its tables, the control plane would, as the same principal to the same satellite."""

import random

import pytest

from beds.fuzz.admissions import DOMAIN, GRANTS, NAMES, ORGS, digest_of, random_admission, random_request
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
from bentpipe.native.request import TokenRequest
from bentpipe.proto.api_paths import API_PATHS
from bentpipe.proto.events import HeaderList
from bentpipe.proto.request import MetadataError, parse_request

RUNS, REQUESTS = 150, 60
NOW = 1_000_000.0


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


def read_both(headers: HeaderList, server_name: str | None, domain: str | None) -> TokenRequest | None:
    """Read a request in C and in Python, which agree."""
    read = read_in_python(headers, server_name, Port(satellite_domain=domain, serves_api=True))
    assert read == asked_in_c(Asked(headers, server_name, domain))
    return read


def test_the_tables_admit_nobody_whom_the_control_plane_refuses() -> None:
    chance = random.Random(1)
    admitted = 0
    for _ in range(RUNS):
        admission = random_admission(chance, NOW)
        tables, identities = tables_of(admission), Identities(admission, Certificates(()))
        for _ in range(REQUESTS):
            headers = random_request(chance)
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
        admission = random_admission(chance, NOW)
        tables, identities = tables_of(admission), Identities(admission, Certificates(()))
        for _ in range(REQUESTS):
            headers = random_request(chance)
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
