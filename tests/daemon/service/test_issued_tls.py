"""Which certificate the edge accepts for each satellite, and what goes across before it is accepted: nothing."""

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from beds.hosts.enrolling import MINE, THEIRS, EnrolmentBed, enrolment_bed
from beds.ports import free_port
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.edge.dial import dial_at_once
from bentpipe.daemon.errors import ProviderRetryable
from bentpipe.daemon.ids import launch_token
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.pki.authority import MachineName, new_authority, new_key, pem_of, private_pem_of, rotated
from bentpipe.daemon.pki.authority_file import keep_authority, read_authority
from bentpipe.daemon.pki.authority_keeper import AUTHORITY_NAME
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.service.issued_tls import NOT_ENROLLED

DEADLINE_S = 30.0


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


SECRET = b"PRI * HTTP/2.0 of the tenant"


class Machine:
    """A machine's TLS server, as buildkitd's. `said` has all that its clients have sent it."""

    def __init__(self, folder: Path, identity_pem: str, trusted: str) -> None:
        path = folder / f"{id(self)}.pem"
        path.write_text(identity_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(path)
        self._context.load_verify_locations(cadata=trusted)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.set_alpn_protocols(["h2"])
        self.said: list[bytes] = []

    @contextlib.contextmanager
    def serving(self) -> Iterator[Address]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=self._serve, args=(server,))
            thread.start()
            yield Address("127.0.0.1", server.getsockname()[1])
            server.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE_S)

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(DEADLINE_S)
                with self._context.wrap_socket(sock, server_side=True) as tls:
                    while data := tls.recv(65536):
                        self.said.append(data)


async def enrolled(bed: EnrolmentBed, folder: Path, key: SatelliteKey = MINE, generation: int = 1) -> Machine:
    given = await bed.launch(key, generation)
    private = new_key()
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(private, hashes.SHA256())
    request = made.public_bytes(serialization.Encoding.PEM).decode()
    issued = await bed.ca.enrolments.enrol(given.satellite, given.launch, given.token, request)
    return Machine(folder, private_pem_of(private) + issued.certificate, issued.trusted)


async def speaks(machine: Machine, tls: SatelliteTls) -> bool:
    """Dial, and send if that is possible."""
    with machine.serving() as address:
        transport = await dial_at_once(address, tls)
        if transport is None:
            return False
        await transport.send_all(SECRET)
        await transport.close_gracefully()
    assert b"".join(machine.said) == SECRET
    machine.said.clear()
    return True


async def test_each_machine_is_its_own_satellites_and_no_other(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed:
        assert set(bed.table) == {MINE, THEIRS}
        assert {each.refused for each in bed.table.values()} == {NOT_ENROLLED}
        mine = await enrolled(bed, tmp_path)
        assert bed.table[THEIRS].refused == NOT_ENROLLED
        assert not await speaks(mine, bed.table[THEIRS]), "nothing is sent while its machine is not known"
        theirs = await enrolled(bed, tmp_path, THEIRS)
        for key in (MINE, THEIRS):
            for machine, owner in ((mine, MINE), (theirs, THEIRS)):
                assert await speaks(machine, bed.table[key]) == (key == owner)
                assert machine.said == [], "not a byte goes to another tenant's machine"


async def test_a_later_machine_takes_its_place(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed:
        old = await enrolled(bed, tmp_path)
        await bed.launch(MINE, 2)
        assert await speaks(old, bed.table[MINE]), "it is still the satellite's"
        new = await enrolled(bed, tmp_path, MINE, 2)
        assert await speaks(new, bed.table[MINE])
        assert not await speaks(old, bed.table[MINE])


async def test_a_certificate_that_has_ended_is_not_accepted(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed:
        machine = await enrolled(bed, tmp_path)
        assert await speaks(machine, bed.table[MINE])
        authority, private = bed.ca.keeper.signing.authority, new_key()
        name = MachineName("test", MINE, launch_token(MINE, generation=1))
        ended = authority.issue_machine(private.public_key(), name, _now() - datetime.timedelta(days=2), 86_400.0)
        late = Machine(tmp_path, private_pem_of(private) + pem_of([ended]), pem_of(authority.roots))
        assert not await speaks(late, bed.table[MINE])
        assert late.said == []


async def test_another_host_learns_of_a_machine_by_the_store(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as one, enrolment_bed(tmp_path, free_port()) as two:
        machine = await enrolled(one, tmp_path)
        assert not await speaks(machine, two.table[MINE])
        await two.ca.issued.refresh()
        assert await speaks(machine, two.table[MINE])
        new = await enrolled(two, tmp_path, MINE, 2)
        await one.ca.issued.refresh()
        assert await speaks(new, one.table[MINE])
        await SqliteRegistry(tmp_path / "ledger.sqlite").forget(MINE, generation=2)
        await one.ca.issued.refresh()
        assert not await speaks(new, one.table[MINE]), "the satellite was removed"


async def test_while_the_store_fails_what_was_known_counts(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed:
        machine = await enrolled(bed, tmp_path)
        (tmp_path / "ledger.sqlite").rename(tmp_path / "elsewhere")
        await bed.ca.issued.refresh()
        assert await speaks(machine, bed.table[MINE])


async def test_a_satellite_that_is_forgotten_is_not_dialled_in_plaintext(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed:
        await enrolled(bed, tmp_path)
        bed.ca.issued.forget(MINE)
        assert MINE not in bed.table
        await bed.ca.issued.refresh()
        assert MINE not in bed.table, "a later read of the store does not bring it back"
        bed.ca.issued.add(MINE)
        assert bed.table[MINE].server_name is not None


async def test_a_rotation_is_taken_up_while_the_daemon_runs(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed, trio.open_nursery() as nursery:
        before = bed.ca.keeper.signing
        path = tmp_path / AUTHORITY_NAME
        changed = trio.Event()
        nursery.start_soon(bed.ca.keeper.run_keeper, changed.set)
        path.write_text("spoiled")
        await trio.sleep(200)
        assert bed.ca.keeper.signing is before, "the old one counts while the file cannot be read"
        keep_authority(path, rotated(before.authority, "test", _now()))
        await changed.wait()
        assert bed.ca.keeper.signing.authority.certificate == read_authority(path).certificate
        assert len(bed.ca.enrolments.trusted()) == 2
        nursery.cancel_scope.cancel()


async def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed:
        machine = await enrolled(bed, tmp_path)
        keep_authority(tmp_path / AUTHORITY_NAME, new_authority("test", _now()))
    async with enrolment_bed(tmp_path, free_port()) as bed:
        await bed.ca.issued.refresh()
        assert bed.table[MINE].refused == ""
        assert not await speaks(machine, bed.table[MINE])
        assert machine.said == []


async def test_a_launch_gets_its_bootstrap_token_from_the_store_or_is_tried_again(tmp_path: Path) -> None:
    async with enrolment_bed(tmp_path, free_port()) as bed:
        launches = [launch_token(MINE, generation=number) for number in (1, 2)]
        with pytest.raises(ProviderRetryable, match="another launch"):
            await bed.ca.bootstrap(MINE, launches[0])
        await bed.ca.registry.begin_generation(MINE, after=0, owner="", at_us=1)
        given = await bed.ca.bootstrap(MINE, launches[0])
        assert given == await bed.ca.bootstrap(MINE, launches[0])
        assert given is not None
        assert given.launch == launches[0]
        await bed.ca.registry.begin_generation(MINE, after=1, owner="", at_us=1)
        with pytest.raises(ProviderRetryable, match="another launch"):
            await bed.ca.bootstrap(MINE, launches[0])
        assert await bed.ca.bootstrap(SatelliteKey("acme", "plain"), launches[0]) is None
        (tmp_path / "ledger.sqlite").rename(tmp_path / "elsewhere")
        with pytest.raises(ProviderRetryable):
            await bed.ca.bootstrap(MINE, launches[1])
