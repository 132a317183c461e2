"""Who answers a connection: by the path of its first request, or by the protocol that it speaks."""

import pytest

from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.identity import TlsIdentity
from bentpipe.daemon.edge.services import OTHER_PROTOCOLS, ServedConnection, answer_to, service_of
from bentpipe.proto.events import PeerKind, RequestHeaders
from bentpipe.proto.health import HEALTH_PATHS
from bentpipe.proto.refusal import HTTP1_ANSWER, HTTP1_TLS_WANTED


class Paths:
    """A service that takes paths with a prefix, and opens nothing."""

    def __init__(self, *prefixes: bytes) -> None:
        self._prefixes = prefixes

    def takes(self, path: bytes, *, names_satellite: bool) -> bool:
        return path.startswith(self._prefixes)

    def open(self, caller: Caller, identity: TlsIdentity, domain: str | None) -> ServedConnection:
        raise NotImplementedError


HEALTH, API = Paths(*HEALTH_PATHS), Paths(b"/api.", b"/grpc.health.v1.Health/Other")


@pytest.mark.parametrize(
    ("path", "service"),
    [
        (b"/grpc.health.v1.Health/Check", HEALTH),
        (b"/grpc.health.v1.Health/Other", HEALTH),  # the first service that takes it
        (b"/AWS.ALB/healthcheck", HEALTH),
        (b"/api.Something/Call", API),
        (b"/moby.buildkit.v1.Control/Solve", None),
        (b"/grpc.health.v1", None),
        (b"", None),
    ],
)
def test_the_first_requests_path_decides(path: bytes, service: Paths | None) -> None:
    headers = RequestHeaders(1, ((b":method", b"POST"), (b":path", path)), end_stream=True)
    assert service_of((HEALTH, API), headers, names_satellite=False) is service


def test_a_request_without_a_path_is_its_satellites() -> None:
    request = RequestHeaders(1, ((b":method", b"CONNECT"),), end_stream=True)
    assert service_of((HEALTH, API), request, names_satellite=False) is None


def test_every_other_protocol_has_an_outcome_of_its_own() -> None:
    assert set(OTHER_PROTOCOLS) == set(PeerKind)
    assert len({outcome for outcome, _ in OTHER_PROTOCOLS.values()}) == len(PeerKind)


@pytest.mark.parametrize(("wants_tls", "answer"), [(False, HTTP1_ANSWER), (True, HTTP1_TLS_WANTED)])
def test_http1_is_told_if_the_port_speaks_tls(wants_tls: bool, answer: bytes) -> None:
    outcome, said = answer_to(PeerKind.HTTP1, "1t3kq0-7h2m-00b4x", wants_tls=wants_tls)
    line = b"Bentpipe-Connection: 1t3kq0-7h2m-00b4x\r\n"
    assert outcome is Outcome.HTTP1
    assert line in said
    assert said.replace(line, b"") == answer
