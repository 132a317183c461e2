"""Every kind of call, by every gRPC client to every gRPC server, over TLS, through a real daemon."""

from collections.abc import Callable

import pytest

from beds.peers.cases import CASES, bulk
from beds.peers.clients import Client
from beds.peers.kinds import CLIENT_KINDS, SERVER_KINDS

Connect = Callable[..., Client]

SLOW_PEER = "grpclib"
"""In pure Python: it would take longer for 100 MB than all else together."""


@pytest.mark.parametrize("client_kind", CLIENT_KINDS)
@pytest.mark.parametrize("server_kind", SERVER_KINDS)
@pytest.mark.parametrize("case", CASES)
def test_call(connected: Connect, client_kind: str, server_kind: str, case: str) -> None:
    CASES[case](connected(client_kind, server_kind))


@pytest.mark.parametrize(
    ("client_kind", "server_kind"),
    [
        pytest.param(client, server, marks=[pytest.mark.slow] if SLOW_PEER in (client, server) else [])
        for client in CLIENT_KINDS
        for server in SERVER_KINDS
    ],
)
def test_100_mb_each_way_at_once(connected: Connect, client_kind: str, server_kind: str) -> None:
    bulk(connected(client_kind, server_kind), 100_000_001)
