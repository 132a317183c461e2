"""What the control plane teaches a data plane before it has it dial a satellite by TLS."""

import contextlib

import pytest
import trio

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.trust_material import TrustMaterial
from bentpipe.daemon.edge import plane as planes
from bentpipe.daemon.edge.dial import NotConnected
from bentpipe.daemon.edge.plane import NO_TRUST, RemotePlane
from bentpipe.daemon.model import Address
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes.bounds import AUTHORITIES_BYTES
from bentpipe.native.tls import TlsError

ADDRESS = Address("192.0.2.1", 8372)


class SentRecords:
    """Stands for the link: keeps what is sent, and lets every OPEN fail."""

    def __init__(self) -> None:
        self.records: list[r.Record] = []
        self.plane: RemotePlane | None = None

    def send_nowait(self, record: r.Record) -> None:
        self.records.append(record)
        if isinstance(record, r.OpenRecord) and self.plane is not None:
            self.plane.receive(r.FailedRecord(record.id, r.FailedAt.DIAL, 111, "", "refused"))

    def take(self) -> list[r.Record]:
        found: list[r.Record] = [each for each in self.records if not isinstance(each, r.ShutRecord)]
        self.records = []
        return found


def made() -> tuple[RemotePlane, SentRecords]:
    sent = SentRecords()
    sent.plane = plane = RemotePlane(sent, 1, None)  # type: ignore[arg-type]
    return plane, sent


async def attempt(plane: RemotePlane, tls: SatelliteTls | None) -> None:
    with contextlib.suppress(NotConnected):
        await plane.attempt(ADDRESS, tls, 1.0)


def issued(authorities: str = "A", key: str = "K") -> SatelliteTls:
    return SatelliteTls(None, "one.acme", trust="issued", material=TrustMaterial(authorities, "C", key))


async def test_it_is_taught_before_the_first_open_and_again_when_it_changes() -> None:
    plane, sent = made()
    await attempt(plane, issued())
    taught, opened = sent.take()
    assert taught == r.TrustRecord(r.LINK_ID, "issued", b"A", b"C", b"K")
    assert isinstance(opened, r.OpenRecord)
    assert (opened.trust, opened.server_name) == ("issued", "one.acme")
    await attempt(plane, issued())
    assert [type(each) for each in sent.take()] == [r.OpenRecord]
    await attempt(plane, issued(authorities="B"))
    assert [type(each) for each in sent.take()] == [r.TrustRecord, r.OpenRecord]


async def test_the_key_is_in_no_text_of_a_record() -> None:
    plane, sent = made()
    await attempt(plane, issued(key="SECRET"))
    assert "SECRET" not in repr(sent.take()) + repr(issued(key="SECRET"))


@pytest.mark.parametrize("tls", [SatelliteTls(None), SatelliteTls(None, trust="issued", refused="not enrolled")])
async def test_without_trust_nothing_is_opened(tls: SatelliteTls) -> None:
    plane, sent = made()
    with pytest.raises(TlsError, match=f"{NO_TRUST}|not enrolled"):
        await plane.attempt(ADDRESS, tls, 1.0)
    assert sent.take() == []


async def test_what_is_too_long_to_be_taught_is_not_opened_either() -> None:
    plane, sent = made()
    for _ in range(2):
        with pytest.raises(TlsError, match="too long"):
            await plane.attempt(ADDRESS, issued(authorities="A" * (AUTHORITIES_BYTES + 1)), 1.0)
    assert sent.take() == []


async def test_what_was_not_used_for_longest_is_forgotten_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "TRUSTS_TAUGHT", 2)
    plane, sent = made()

    async def use(name: str) -> list[tuple[str, bool]]:
        await attempt(plane, SatelliteTls(None, trust=name, material=TrustMaterial(name)))
        return [(each.name, bool(each.authorities)) for each in sent.take() if isinstance(each, r.TrustRecord)]

    assert [await use("a"), await use("b"), await use("a")] == [[("a", True)], [("b", True)], []]
    assert await use("c") == [("b", False), ("c", True)]
    assert await use("b") == [("a", False), ("b", True)]


async def test_a_plane_that_is_gone_connects_to_nothing() -> None:
    plane, sent = made()
    plane.lost()
    with trio.fail_after(5), pytest.raises(NotConnected):
        await plane.attempt(ADDRESS, issued(), 1.0)
    assert sent.take() == []
