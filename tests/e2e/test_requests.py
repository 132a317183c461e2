"""Requests that real checkers and other clients send, and malformed ones: each gets its answer on its own stream."""

import contextlib
import time
import urllib.request
from pathlib import Path

import hpack
import pytest

from beds.hosts.frontends import haproxy, nginx
from beds.hosts.in_process import PLAIN, PREFACE, TOKEN, exchange, frames_of
from beds.http2 import EMPTY_SETTINGS, texts
from beds.peers.clients import CallError, GrpcioClient
from beds.ports import free_port
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.edge_host import ORG, EdgeHost
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.frames import ACK, END_HEADERS, END_STREAM, FrameType, frame
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.health import encode_request

CHECK = "/grpc.health.v1.Health/Check"
ALB = "/AWS.ALB/healthcheck"
PSEUDO = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C")]
GRPC = [("content-type", "application/grpc"), ("te", "trailers")]
DESTINATION = [("satellite_org", "acme"), ("satellite_name", "sat")]
GOODBYE = frame(FrameType.GOAWAY, 0, 0, bytes(8))

CHECKS_S = 1.5
"""Some checks."""

Fields = list[tuple[str, str]]


class Said:
    """What came back: header fields by stream, resets, and the connection's end."""

    def __init__(self, answer: bytes) -> None:
        decoder = hpack.Decoder()
        self.fields: dict[int, dict[str, str]] = {}
        self.resets: dict[int, ErrorCode] = {}
        self.goaway: ErrorCode | None = None
        self.acks = 0
        for kind, flags, stream, payload in frames_of(answer):
            match kind:
                case FrameType.HEADERS:
                    self.fields.setdefault(stream, {}).update(texts(decoder.decode(payload)))
                case FrameType.RST_STREAM:
                    self.resets[stream] = ErrorCode(int.from_bytes(payload))
                case FrameType.GOAWAY:
                    self.goaway = ErrorCode(int.from_bytes(payload[4:8]))
                case FrameType.SETTINGS if flags & ACK:
                    self.acks += 1


def request(fields: Fields, body: bytes = b"", stream: int = 1) -> bytes:
    block = hpack.Encoder().encode(fields)
    if not body:
        return frame(FrameType.HEADERS, END_HEADERS | END_STREAM, stream, block)
    return frame(FrameType.HEADERS, END_HEADERS, stream, block) + frame(FrameType.DATA, END_STREAM, stream, body)


async def ask(daemon: Daemon, *requests: bytes) -> Said:
    sent = b"".join(requests)
    return Said(await exchange(daemon, PLAIN, PREFACE + EMPTY_SETTINGS + sent, close=True))


def pseudo(method: str, path: str) -> Fields:
    return [(":method", method), (":scheme", "http"), (":path", path)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (pseudo("OPTIONS", "*"), GrpcStatus.INVALID_ARGUMENT),  # HAProxy's default check
        (pseudo("GET", "/"), GrpcStatus.INVALID_ARGUMENT),
        (pseudo("HEAD", "/"), GrpcStatus.INVALID_ARGUMENT),
        (PSEUDO + GRPC, GrpcStatus.UNAUTHENTICATED),
        (PSEUDO + GRPC + DESTINATION, GrpcStatus.UNAUTHENTICATED),
        ([*PSEUDO, *GRPC, ("satellite_token", TOKEN)], GrpcStatus.INVALID_ARGUMENT),
        (
            [*PSEUDO, *DESTINATION, ("satellite_token", "bp_wrong"), ("cookie", "a=1"), ("cookie", "b=2")],
            GrpcStatus.UNAUTHENTICATED,
        ),
        ([*PSEUDO, ("host", "edge"), *GRPC], GrpcStatus.UNAUTHENTICATED),
    ],
)
async def test_a_request_without_authority_is_refused_in_words(
    daemon: Daemon, fields: Fields, status: GrpcStatus
) -> None:
    said = await ask(daemon, request(fields))
    assert (said.fields[1][":status"], said.fields[1]["grpc-status"]) == ("200", str(int(status)))
    assert said.goaway is ErrorCode.NO_ERROR


async def test_a_health_check_without_authority(daemon: Daemon) -> None:
    said = await ask(daemon, request(pseudo("POST", CHECK) + GRPC, encode_request("")))
    assert said.fields[1]["grpc-status"] == "0"


@pytest.mark.parametrize("extra", [[], DESTINATION, [("satellite_token", "bp_wrong")], [(":authority", "edge")]])
@pytest.mark.parametrize("path", [ALB, "/AWS.ALB/other"])
async def test_albs_check(daemon: Daemon, path: str, extra: Fields) -> None:
    """Its default success code is 12, for a path that nobody has."""
    before, behind = [f for f in extra if f[0][0] == ":"], [f for f in extra if f[0][0] != ":"]
    said = await ask(daemon, request(pseudo("POST", path) + before + GRPC + behind, b"\0\0\0\0\0"))
    assert said.fields[1]["grpc-status"] == str(int(GrpcStatus.UNIMPLEMENTED))
    assert said.goaway is not ErrorCode.PROTOCOL_ERROR


async def test_connect_does_not_lead_through(daemon: Daemon) -> None:
    said = await ask(daemon, request([(":method", "CONNECT"), (":authority", "db:5432")]))
    assert said.fields[1][":status"] == "405"
    assert said.goaway is ErrorCode.NO_ERROR


MALFORMED: dict[str, Fields] = {
    "upper case": [*PSEUDO, ("X-Name", "a")],
    "white space": [*PSEUDO, ("x-name", " a")],
    "new line": [*PSEUDO, ("x-name", "a\nb: c")],
    "te": [*PSEUDO, ("te", "gzip")],
    "connection": [*PSEUDO, ("connection", "keep-alive")],
    "transfer-encoding": [*PSEUDO, ("transfer-encoding", "chunked")],
    "path twice": [*PSEUDO, (":path", "/other")],
    "method twice": [*PSEUDO, (":method", "POST")],
    "pseudo behind": [*PSEUDO, ("a", "b"), (":authority", "edge")],
    "unknown pseudo": [*PSEUDO, (":bent", "pipe")],
    "response's pseudo": [*PSEUDO, (":status", "200")],
    "no scheme": [PSEUDO[0], PSEUDO[2]],
    "no method": PSEUDO[1:],
    "no path": PSEUDO[:2],
    "empty path": pseudo("POST", ""),
    "connect with path": [*pseudo("CONNECT", "/"), (":authority", "edge")],
    "two hosts": [*PSEUDO, (":authority", "edge"), ("host", "other")],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_request_ends_its_stream_alone(daemon: Daemon, fields: Fields) -> None:
    said = await ask(daemon, request(fields), request([*PSEUDO, *GRPC], stream=3))
    assert said.fields[1][":status"] == "400"
    assert said.resets[1] is ErrorCode.PROTOCOL_ERROR
    assert "grpc-status" in said.fields[3], "the other one is answered"
    assert said.goaway is ErrorCode.NO_ERROR


@pytest.mark.parametrize("name", sorted(MALFORMED.keys() - {"no path", "empty path", "connect with path"}))
async def test_a_malformed_request_in_place(daemon: Daemon, name: str) -> None:
    bad = [(key, CHECK if key == ":path" else value) for key, value in MALFORMED[name]]
    good = request(pseudo("POST", CHECK) + GRPC, encode_request(""), stream=3)
    said = await ask(daemon, request(bad + GRPC[:1]), good)
    assert said.fields[1][":status"] == "400"
    assert said.resets[1] is ErrorCode.PROTOCOL_ERROR
    assert said.fields[3]["grpc-status"] == "0"
    assert said.goaway is not ErrorCode.PROTOCOL_ERROR


async def test_trailers_with_a_pseudo_field(daemon: Daemon) -> None:
    encoder = hpack.Encoder()
    opening = frame(FrameType.HEADERS, END_HEADERS, 1, encoder.encode(pseudo("POST", CHECK) + GRPC))
    trailers = frame(FrameType.HEADERS, END_HEADERS | END_STREAM, 1, encoder.encode([(":path", "/x")]))
    said = await ask(daemon, opening + frame(FrameType.DATA, 0, 1, encode_request("")) + trailers)
    assert said.resets[1] is ErrorCode.PROTOCOL_ERROR
    assert said.goaway is not ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("spelling", [("-", "-", "-"), ("_", "-", "-"), ("-", "_", "-"), ("_", "_", "-")])
def test_metadata_spelt_with_dashes(edge: EdgeHost, spelling: tuple[str, str, str]) -> None:
    values = {"name": "grpcio", "org": ORG, "token": edge.token}
    metadata = [(f"satellite{mark}{key}", value) for mark, (key, value) in zip(spelling, values.items(), strict=True)]
    with contextlib.closing(GrpcioClient(edge.port, edge.ca_pem, metadata)) as client:
        assert client.unary("Echo", b"hello") == b"hello"


def test_two_spellings_that_differ(edge: EdgeHost) -> None:
    metadata = [("satellite_name", "grpcio"), ("satellite-name", "grpclib"), ("satellite-org", ORG)]
    with (
        contextlib.closing(
            GrpcioClient(edge.port, edge.ca_pem, [*metadata, ("satellite-token", edge.token)])
        ) as client,
        pytest.raises(CallError) as error,
    ):
        client.unary("Echo", b"hello")
    assert error.value.code == GrpcStatus.INVALID_ARGUMENT
    assert "satellite_name and satellite-name" in error.value.details


def test_haproxys_check_over_http2(edge: EdgeHost, tmp_path: Path) -> None:
    """Its default check sends no authority; it counts the server as up, so it was answered."""
    port = free_port()
    sections = f"""
defaults
    mode http
    timeout connect 5s
    timeout client 1m
    timeout server 1m
frontend alive
    bind 127.0.0.1:{port}
    monitor-uri /alive
    acl down nbsrv(edge) lt 1
    monitor fail if down
backend edge
    option httpchk
    server edge 127.0.0.1:{edge.port} check inter 200ms fall 1 rise 1 ssl verify none alpn h2 check-alpn h2
"""
    with haproxy(tmp_path, sections, port):
        time.sleep(CHECKS_S)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/alive", timeout=10) as answer:
            assert answer.status == 200
    told = [record for record in edge.records() if "this is not a gRPC request" in str(record.get("error"))]
    assert told
    assert {(record["message"], record["end"]) for record in told} == {("connection ended", "refused")}


@pytest.mark.parametrize("mark", ["-", "_"])
def test_nginx_drops_underscores(edge: EdgeHost, tmp_path: Path, mark: str) -> None:
    """As it does by default: that is why there are two spellings."""
    port = free_port()
    http = f"""
server {{
    listen 127.0.0.1:{port} http2;
    underscores_in_headers off;
    location / {{ grpc_pass grpcs://127.0.0.1:{edge.port}; }}
}}
"""
    metadata = [
        (f"satellite{mark}{key}", value) for key, value in (("name", "grpcio"), ("org", ORG), ("token", edge.token))
    ]
    with nginx(tmp_path, port, http=http), contextlib.closing(GrpcioClient(port, None, metadata)) as client:
        if mark == "-":
            assert client.unary("Echo", b"hello") == b"hello"
        else:
            with pytest.raises(CallError) as error:
                client.unary("Echo", b"hello")
            assert error.value.code == GrpcStatus.UNAUTHENTICATED
