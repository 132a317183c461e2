"""Clients that threads in C bring to their satellites, while something else happens to them: in every step of their way."""

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from typing import cast

import pytest
import trio
import trustme

from beds.http2 import EMPTY_SETTINGS
from beds.planes.admitting import OURS, SETTINGS_ACK, THEIRS, WHOLE, AdmittingControl, request
from beds.planes.scripted import OPENING, PlaneBed, plane_bed, read_exactly, read_to_end, wait_until
from bentpipe.daemon.dataplane.reports import ControlReports
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.native.joiner import Joiner, News, NewsFlag, StreamFailure, StreamId

NAME = "box.internal"
TRUST = "issued"
STEPS = ("greets", "dials", "introduces", "owes the ack")
"""A client that has not made its request; one whose satellite has not completed its TLS; one whose satellite has said
nothing; and one that is admitted, and joined once it has acknowledged our SETTINGS."""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneBed]:
    with plane_bed(tmp_path_factory.mktemp("plane")) as bed:
        yield bed


class TlsGate:
    """A gate to a satellite that is known by TLS."""

    def __init__(self, bed: PlaneBed) -> None:
        self.admitting = AdmittingControl(bed)
        self.authority = trustme.CA()
        self.teach(self.authority)
        self.admitting.shut_gate()
        self.admitting.gate_number += 1
        gate = s.GateRecord(
            *(
                self.admitting.gate_number,
                bed.satellite_port,
                1 << 62,
                False,
                0,
                "acme",
                "one",
                "127.0.0.1",
                TRUST,
                NAME,
            )
        )
        self.admitting.control.send(gate)
        self.admitting.control.ping()
        self.bed = bed

    def teach(self, authority: trustme.CA) -> None:
        pem = authority.cert_pem.bytes()
        self.admitting.control.send(r.TrustRecord(r.LINK_ID, TRUST, pem, b"", b""))
        assert self.admitting.control.expect(r.DoneRecord).words == ""

    def serve(self, sock: socket.socket, authority: trustme.CA | None = None) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (authority or self.authority).issue_cert(NAME).configure_cert(context)
        return context.wrap_socket(sock, server_side=True)


class OnItsWay:
    """A client that has come as far as a step, with its satellite's end."""

    def __init__(self, bed: PlaneBed, step: str) -> None:
        self.gate = TlsGate(bed)
        self.control = self.gate.admitting.control
        self.said = OPENING
        self.client = bed.client()
        assert read_exactly(self.client, len(OURS)) == OURS
        self.satellite: socket.socket | None = None
        if step == "greets":
            return
        self.client.sendall(request())
        self.said += request()
        self.satellite = bed.accept()
        if step == "dials":
            return
        self.satellite = self.gate.serve(self.satellite)
        bed.opened.append(self.satellite)
        assert read_exactly(self.satellite, len(OPENING)) == OPENING
        if step == "owes the ack":
            self.satellite.sendall(THEIRS)
            read_exactly(self.client, 1)

    @property
    def admitted(self) -> list[s.AdmittedRecord]:
        return [each for each in self.control.records if isinstance(each, s.AdmittedRecord)]


@pytest.mark.parametrize("step", STEPS[:3])
def test_a_gate_that_is_shut(bed: PlaneBed, step: str) -> None:
    way = OnItsWay(bed, step)
    way.gate.admitting.shut_gate()
    if step == "greets":
        way.client.sendall(request())
        way.said += request()
    arrived = way.control.expect(r.ArrivedRecord)
    assert (arrived.first, arrived.kept) == (way.said, len(way.said))
    assert way.admitted == []
    bed.close_connections()


def test_a_gate_that_is_shut_behind_a_client(bed: PlaneBed) -> None:
    """The client was committed: the control plane reads of it before it reads that the gate is shut."""
    way = OnItsWay(bed, "owes the ack")
    way.control.send(s.ShutGateRecord(way.gate.admitting.gate_number))
    seen = way.control.records
    wait_until(
        lambda: way.control.read(0.1) and any(isinstance(each, s.GatedRecord) for each in seen), "the gate is not shut"
    )
    kinds = [type(each) for each in seen]
    assert kinds.index(s.AdmittedRecord) < kinds.index(s.GatedRecord)
    admitted = way.control.expect(s.AdmittedRecord)
    assert admitted.gate == way.gate.admitting.gate_number
    way.client.sendall(SETTINGS_ACK)
    assert way.satellite is not None
    assert read_exactly(way.satellite, len(request())) == request()
    way.control.expect(r.WentRecord, admitted.id)
    bed.close_connections()


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_leaves(bed: PlaneBed, step: str) -> None:
    way = OnItsWay(bed, step)
    way.client.close()
    if step == "owes the ack":
        admitted = way.control.expect(s.AdmittedRecord)
        way.control.expect(r.FailedRecord, admitted.id)
    else:
        arrived = way.control.expect(r.ArrivedRecord)
        assert arrived.first == way.said
        assert way.control.expect(r.BytesRecord, arrived.id).end
    if way.satellite is not None and step != "dials":
        read_to_end(way.satellite)
    bed.close_connections()


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_satellite_that_leaves(bed: PlaneBed, step: str) -> None:
    way = OnItsWay(bed, step)
    assert way.satellite is not None
    way.satellite.close()
    if step == "owes the ack":
        admitted = way.control.expect(s.AdmittedRecord)
        way.control.expect(r.FailedRecord, admitted.id)
        read_to_end(way.client)
    else:
        arrived = way.control.expect(r.ArrivedRecord)
        assert (arrived.first, arrived.kept) == (way.said, len(way.said))
    bed.close_connections()


@pytest.mark.parametrize("step", STEPS[1:3])
def test_a_satellite_whose_trust_changes(bed: PlaneBed, step: str) -> None:
    """Nobody is brought to it by the trust that was; the next client is, by the one that is."""
    way = OnItsWay(bed, step)
    other = trustme.CA()
    way.gate.teach(other)
    if step == "introduces":
        assert way.satellite is not None
        way.satellite.close()
    assert way.control.expect(r.ArrivedRecord).first == way.said
    client = bed.client(said=WHOLE)
    satellite = way.gate.serve(bed.accept(), other)
    bed.opened.append(satellite)
    assert read_exactly(satellite, len(WHOLE)) == WHOLE
    way.control.expect(s.AdmittedRecord)
    satellite.sendall(EMPTY_SETTINGS)
    assert read_exactly(client, len(EMPTY_SETTINGS)) == EMPTY_SETTINGS
    bed.close_connections()


def test_a_satellite_that_cannot_prove_itself_gets_nothing(bed: PlaneBed) -> None:
    gate = TlsGate(bed)
    bed.client(said=WHOLE)
    with contextlib.suppress(OSError):  # it breaks the handshake off
        assert read_exactly(gate.serve(bed.accept(), trustme.CA()), 1) == b""
    assert gate.admitting.control.expect(r.ArrivedRecord).first == WHOLE
    bed.close_connections()


@pytest.mark.parametrize("said", [b"SSH-2.0-x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", SETTINGS_ACK, bytes(9)])
def test_a_satellite_that_does_not_speak_http2(bed: PlaneBed, said: bytes) -> None:
    way = OnItsWay(bed, "introduces")
    assert way.satellite is not None
    way.satellite.sendall(said)
    arrived = way.control.expect(r.ArrivedRecord)
    assert (arrived.first, arrived.kept) == (way.said, len(way.said))
    bed.close_connections()


@pytest.mark.parametrize("step", STEPS)
def test_a_control_plane_that_dies_and_another_one(bed: PlaneBed, step: str) -> None:
    """It is offered the client, unless that was committed: then it is live."""
    way = OnItsWay(bed, step)
    way.control.close()
    successor = bed.control()
    if step == "owes the ack":
        assert successor.expect(r.LiveRecord).stage is r.Stage.UNDER_WAY
    else:
        if step == "greets":
            way.client.sendall(request())
            way.said += request()
        assert successor.expect(r.ArrivedRecord).first == way.said
    bed.close_connections()


@pytest.mark.parametrize("step", STEPS)
def test_the_process_ends(step: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In order, whatever is on its way."""
    with plane_bed(tmp_path_factory.mktemp("ends")) as own:
        OnItsWay(own, step)
        own.process.send_signal(signal.SIGTERM)
        wait_until(lambda: own.process.poll() is not None, "it does not end")
        assert own.process.returncode in (0, 3), own.log  # 3: it has cut some
        assert "Traceback" not in own.log


class Heard:
    """A stream that notes what it takes."""

    def __init__(self, native: StreamId) -> None:
        self.native = native
        self.flags: list[int] = []

    def take(self, news: News) -> bool:
        self.flags.append(news.flags)
        return True

    def pass_on(self) -> bool:
        return True

    def abandon(self, news: News) -> None:
        raise AssertionError(news)

    def drop(self) -> None:
        pass


class TwiceTold:
    """A joiner that has news of one client twice, and nothing more."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(1)
        self.flags = [int(NewsFlag.COMMITTED), int(NewsFlag.JOINED | NewsFlag.RELEASED)]

    def take(self, at_most: int) -> list[News]:
        flags, self.flags = self.flags, []
        return [News(StreamId(7), each, b"", StreamFailure.FINE, 0, "", b"", b"") for each in flags]

    def gather(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        os.close(self.event_fd)


async def test_news_that_come_behind_the_first_of_a_client_are_not_lost() -> None:
    streams = Streams(cast(Joiner, TwiceTold()), ControlReports())
    heard = Heard(StreamId(7))
    streams.by_lane = lambda news: streams.add(heard)
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.run_news)
            while not heard.flags:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert heard.flags == [int(NewsFlag.JOINED | NewsFlag.RELEASED)]
