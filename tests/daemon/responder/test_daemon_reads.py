"""The daemon reads the real responder over TLS of the daemon's own authority: an address is not an identity here either."""

from pathlib import Path

import pytest
import trio

from beds.peers.responder_process import CALL_DEADLINE_S, ResponderProcess
from beds.tls_pairs import daemon, machine
from beds.utc import now
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.edge.questions import Questions, ResponderTarget
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.pki.authority import CertificateAuthority, MachineName, new_authority
from bentpipe.daemon.readings.reading import Reading, ReadingFailed, ReadResult
from bentpipe.daemon.responder.enrol import DAEMON_NAME
from bentpipe.native.tls import TlsClientContext

ONE, TWO = (SatelliteKey("acme", name) for name in ("one", "two"))
NAME, OTHER = MachineName("fleet", ONE, "1" * 64), MachineName("fleet", TWO, "2" * 64)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return new_authority("fleet", now())


def settings(folder: Path, authority: CertificateAuthority, name: MachineName) -> dict[str, str | int]:
    made = machine(folder / "machine", authority, name, now())
    (folder / "trusted.pem").write_text(made.trusted)
    files: dict[str, str | int] = {"certificate": str(made.file), "key": str(made.file)}
    return files | {"client_ca": str(folder / "trusted.pem"), "client_name": DAEMON_NAME}


def trust(folder: Path, authority: CertificateAuthority) -> TlsClientContext:
    ours = daemon(folder / "daemon", authority, now())
    (folder / "ca.pem").write_text(ours.trusted)
    return TlsClientContext(ca=folder / "ca.pem", certificate=ours.file, key=ours.file)


async def read(port: int, tls: SatelliteTls | None) -> Reading:
    targets = {ONE: ResponderTarget(port, CALL_DEADLINE_S)}
    questions = Questions({} if tls is None else {ONE: tls}, targets, lambda _key, _said: None)
    with trio.fail_after(2 * CALL_DEADLINE_S):
        return await questions.read(ONE, Address("127.0.0.1", port))


async def refused(port: int, tls: SatelliteTls | None) -> ReadingFailed:
    with pytest.raises(ReadingFailed) as caught:
        await read(port, tls)
    return caught.value


async def test_its_own_machine_is_read(authority: CertificateAuthority, tmp_path: Path) -> None:
    with ResponderProcess(settings(tmp_path, authority, NAME)) as responder:
        reading = await read(responder.port, SatelliteTls(trust(tmp_path, authority), NAME.dns))
    assert reading.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_another_satellites_machine_at_its_address_is_not_read(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    with ResponderProcess(settings(tmp_path, authority, OTHER)) as responder:
        error = await refused(responder.port, SatelliteTls(trust(tmp_path, authority), NAME.dns))
    assert error.result is ReadResult.UNREACHABLE
    assert "certificate" in str(error).lower()


async def test_a_machine_of_another_authority_is_not_read(authority: CertificateAuthority, tmp_path: Path) -> None:
    with ResponderProcess(settings(tmp_path, new_authority("fleet", now()), NAME)) as responder:
        tls = SatelliteTls(trust(tmp_path, authority), NAME.dns)
        assert (await refused(responder.port, tls)).result is ReadResult.UNREACHABLE


async def test_neither_side_speaks_plaintext_where_tls_is_configured(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    with ResponderProcess(settings(tmp_path, authority, NAME)) as responder:
        assert (await refused(responder.port, None)).result in (ReadResult.REFUSED, ReadResult.TIMEOUT)
    with ResponderProcess({}) as plaintext:
        tls = SatelliteTls(trust(tmp_path, authority), NAME.dns)
        assert (await refused(plaintext.port, tls)).result is not ReadResult.OK


async def test_without_an_enrolled_machine_nothing_is_asked(authority: CertificateAuthority, tmp_path: Path) -> None:
    with ResponderProcess(settings(tmp_path, authority, NAME)) as responder:
        tls = SatelliteTls(trust(tmp_path, authority), refused="no machine has enrolled")
        error = await refused(responder.port, tls)
    assert (error.result, str(error)) == (ReadResult.UNREACHABLE, "no machine has enrolled")
