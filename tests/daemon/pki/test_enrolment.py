"""Enrolment over a real store: two hosts, lost answers, races, kills between steps, and what is in the certificates."""

import base64
import datetime
import logging
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ids import launch_token
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import (
    CertificateAuthority,
    MachineName,
    key_hash_of,
    new_authority,
    new_key,
    rotated,
)
from bentpipe.daemon.pki.enrolment import Bootstrap, Enrolments, Issued, Settings
from bentpipe.daemon.pki.rules import Denial, Denied
from bentpipe.daemon.registry.identities import StoredIdentity
from bentpipe.daemon.registry.sqlite_identities import SqliteIdentityStore

NOW = datetime.datetime.now(datetime.UTC)
KEY, OTHER = SatelliteKey("acme", "one"), SatelliteKey("rival", "one")
LIFE_S, TOKEN_S = 900.0, 60.0
SETTINGS = Settings("fleet", "daemon.test:8373", LIFE_S, TOKEN_S)
AUTHORITY = new_authority("fleet", NOW)
RACERS = 6


def launch_of(key: SatelliteKey = KEY, generation: int = 1) -> str:
    return launch_token(key, generation=generation)


class Host:
    """One host of the fleet, with a clock of its own."""

    def __init__(self, folder: Path, authority: CertificateAuthority = AUTHORITY) -> None:
        self.authority = authority
        self.now = NOW.timestamp()
        self.rows: list[StoredIdentity] = []
        self.store = SqliteIdentityStore(folder / "ledger.sqlite")
        self.enrolments = Enrolments(
            SETTINGS, self.store, lambda: self.authority, self.rows.append, wall=lambda: self.now
        )

    async def launch(self, key: SatelliteKey = KEY, generation: int = 1) -> Bootstrap:
        return await self.enrolments.expect(key, launch_of(key, generation), generation)


class Machine:
    """The machine's side, with one key at a time."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self.bootstrap = bootstrap
        self.key = new_key()
        self.issued: Issued | None = None

    async def enrol(self, host: Host) -> x509.Certificate:
        given = self.bootstrap
        self.issued = await host.enrolments.enrol(given.satellite, given.launch, given.token, request_of(self.key))
        return self.certificate

    @property
    def certificate(self) -> x509.Certificate:
        assert self.issued is not None
        return x509.load_pem_x509_certificates(self.issued.certificate.encode())[0]

    async def renew(self, host: Host, key: ec.EllipticCurvePrivateKey, *, lost: bool = False) -> None:
        assert self.issued is not None
        kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        own = self.key.public_key().public_bytes(*kind).decode()
        request = request_of(key)
        signature = base64.b64encode(self.key.sign(request.encode(), ec.ECDSA(hashes.SHA256()))).decode()
        given = self.bootstrap
        issued = await host.enrolments.renew(given.satellite, given.launch, own, request, signature)
        if not lost:
            self.key, self.issued = key, issued


def request_of(key: ec.EllipticCurvePrivateKey) -> str:
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def names_of(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    return names.value.get_values_for_type(x509.DNSName), names.value.get_values_for_type(
        x509.UniformResourceIdentifier
    )


async def denial_of(host: Host, machine: Machine) -> Denial:
    with pytest.raises(Denied) as caught:
        await machine.enrol(host)
    return caught.value.denial


async def test_a_machine_gets_the_certificate_of_its_launch_and_no_other(tmp_path: Path) -> None:
    host = Host(tmp_path)
    machine = Machine(await host.launch())
    made = await machine.enrol(host)
    name = MachineName("fleet", KEY, launch_of())
    assert names_of(made) == ([name.dns], [f"bentpipe://fleet/acme/one/{launch_of()}"])
    usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH], "as a client's it would open every tenant's buildkitd"
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.public_key() == machine.key.public_key()
    assert made.not_valid_after_utc.timestamp() == int(NOW.timestamp() + LIFE_S)
    made.verify_directly_issued_by(AUTHORITY.certificate)
    assert machine.issued is not None
    assert machine.issued.renew_after_s == LIFE_S / 3
    assert [row.enrolled and row.enrolled.key_hash for row in host.rows] == [
        None,
        key_hash_of(machine.key.public_key()),
    ]
    names = {MachineName("fleet", key, launch_of(key, number)).dns for key in (KEY, OTHER) for number in (1, 2)}
    assert len(names) == 4


async def test_each_repetition_of_a_launch_has_the_same_user_data(tmp_path: Path) -> None:
    one, two = Host(tmp_path), Host(tmp_path)
    first = await one.launch()
    two.now += TOKEN_S / 2
    assert await two.launch() == first == await one.launch()
    assert (await one.launch(OTHER)).token != first.token
    assert (await one.launch(generation=2)).token != first.token
    row = await one.store.identity(KEY)
    assert row is not None
    assert first.token not in repr(row), "only its hash is stored"
    assert (await two.launch(OTHER)).to_json() == (await one.launch(OTHER)).to_json()


async def test_a_token_is_burnt_by_its_first_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = Host(tmp_path), Host(tmp_path)
    machine = Machine(await one.launch())
    await machine.enrol(one)
    await machine.enrol(two)  # its first answer was lost
    thief = Machine(machine.bootstrap)
    with caplog.at_level(logging.ERROR):
        for host in (two, one, two):
            assert await denial_of(host, thief) is Denial.SECOND
    told = [each for each in caplog.records if each.getMessage() == "a machine's secret is in other hands"]
    assert len(told) == 2, "once for each host"
    assert machine.bootstrap.token not in caplog.text
    assert two.enrolments.results == {("enrol", "ok"): 1, ("enrol", "second"): 2}
    assert await machine.enrol(one), "the machine is not harmed"


async def test_of_all_that_race_for_a_token_one_key_wins(tmp_path: Path) -> None:
    hosts = [Host(tmp_path) for _ in range(RACERS)]
    bootstrap = await hosts[0].launch()
    won: list[Machine] = []
    denied: list[Denial] = []

    async def race(host: Host) -> None:
        machine = Machine(bootstrap)
        try:
            await machine.enrol(host)
        except Denied as exc:
            denied.append(exc.denial)
        else:
            won.append(machine)

    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(race, host)
    assert len(won) == 1
    assert denied == [Denial.SECOND] * (RACERS - 1)
    row = await hosts[0].store.identity(KEY)
    assert row is not None
    assert row.enrolled is not None
    assert row.enrolled.key_hash == key_hash_of(won[0].key.public_key())


async def test_another_satellites_token_enrols_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path)
    mine, theirs = await host.launch(), await host.launch(OTHER)
    for mixed in (
        Bootstrap(mine.address, theirs.satellite, theirs.launch, mine.token, mine.trusted),
        Bootstrap(mine.address, theirs.satellite, mine.launch, mine.token, mine.trusted),
        Bootstrap(mine.address, mine.satellite, theirs.launch, mine.token, mine.trusted),
        Bootstrap(mine.address, mine.satellite, mine.launch, mine.token + "=", mine.trusted),
        Bootstrap(mine.address, "acme", mine.launch, mine.token, mine.trusted),
        Bootstrap(mine.address, "acme/one/x", mine.launch, mine.token, mine.trusted),
        Bootstrap(mine.address, "", "", "", mine.trusted),
    ):
        assert await denial_of(host, Machine(mixed)) is Denial.UNKNOWN
    await Machine(mine).enrol(host)
    await Machine(theirs).enrol(host)


async def test_a_token_that_has_ended_counts_again_after_a_start(tmp_path: Path) -> None:
    host = Host(tmp_path)
    machine = Machine(await host.launch())
    host.now += TOKEN_S
    assert await denial_of(host, machine) is Denial.EXPIRED
    await host.enrolments.prolong(KEY)
    await host.enrolments.prolong(OTHER)
    await machine.enrol(host)


async def test_a_renewal_needs_the_machines_key_and_may_be_repeated(tmp_path: Path) -> None:
    one, two = Host(tmp_path), Host(tmp_path)
    machine = Machine(await one.launch())
    await machine.enrol(one)
    thief = Machine(machine.bootstrap)
    thief.issued = machine.issued
    with pytest.raises(Denied) as caught:
        await thief.renew(one, new_key())
    assert caught.value.denial is Denial.UNKNOWN, "it has a key of its own, and not the machine's"
    one.now = two.now = NOW.timestamp() + 100 * LIFE_S  # it slept until long after its certificate's end
    following = new_key()
    await machine.renew(one, following, lost=True)
    await machine.renew(two, following)
    assert machine.key is following
    assert names_of(machine.certificate)[0] == [MachineName("fleet", KEY, launch_of()).dns]
    assert machine.certificate.not_valid_after_utc.timestamp() == int(one.now + LIFE_S)
    await machine.renew(one, new_key())


async def test_a_copied_key_is_reported_when_both_have_renewed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path)
    machine = Machine(await host.launch())
    await machine.enrol(host)
    thief = Machine(machine.bootstrap)
    thief.key, thief.issued = machine.key, machine.issued
    await thief.renew(host, new_key())
    with pytest.raises(Denied) as caught, caplog.at_level(logging.ERROR):
        await machine.renew(host, new_key())
    assert caught.value.denial is Denial.STALE_KEY
    assert "in other hands" in caplog.text


async def test_the_machine_of_an_earlier_launch_gets_nothing_more(tmp_path: Path) -> None:
    host = Host(tmp_path)
    old, new = Machine(await host.launch()), Machine(await host.launch(generation=2))
    assert await denial_of(host, old) is Denial.UNKNOWN
    await new.enrol(host)
    third = Machine(await host.launch(generation=3))
    await new.renew(host, new_key())
    await third.enrol(host)
    with pytest.raises(Denied) as caught:
        await new.renew(host, new_key())
    assert caught.value.denial is Denial.SUPERSEDED


async def test_an_authority_that_is_replaced_between_launch_and_enrolment(tmp_path: Path) -> None:
    """The user data of the earlier launch stays good, and a machine trusts both authorities until the old one has ended."""
    host = Host(tmp_path)
    machine = Machine(await host.launch())
    host.authority = rotated(AUTHORITY, "fleet", NOW)
    again = await host.launch()
    assert again.token != machine.bootstrap.token
    await machine.enrol(host)
    assert machine.issued is not None
    assert len(x509.load_pem_x509_certificates(machine.issued.trusted.encode())) == 2
    machine.certificate.verify_directly_issued_by(host.authority.certificate)
    assert await denial_of(host, Machine(again)) is Denial.SECOND
    host.now += LIFE_S + 2 * 3600
    await machine.renew(host, new_key())
    assert len(x509.load_pem_x509_certificates(machine.issued.trusted.encode())) == 1


async def test_a_store_that_fails_gives_no_certificate(tmp_path: Path) -> None:
    host = Host(tmp_path)
    machine = Machine(await host.launch())
    (tmp_path / "ledger.sqlite").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        await machine.enrol(host)
    assert machine.issued is None
    (tmp_path / "elsewhere").rename(tmp_path / "ledger.sqlite")
    await machine.enrol(host)
