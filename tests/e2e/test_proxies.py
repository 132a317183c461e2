"""Real proxies that send the PROXY header: HAProxy, nginx and Envoy, plain and before TLS, with their health checks."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds.hosts.behind_proxies import PLAIN, PROXY_ADDRESS, TLS, Behind, edge_behind_proxies
from beds.hosts.frontends import envoy, haproxy, nginx
from beds.hosts.wires import SourceWire
from beds.peers.clients import CallError
from beds.ports import free_port
from bentpipe.daemon.connections.quotas import GRACE_S

CLIENTS = tuple(f"127.0.0.{number}" for number in (3, 4, 5))
MAX_PER_ADDRESS = 3
CHECKS = 5
Start = Callable[[Path, int, int], contextlib.AbstractContextManager[int]]
"""(folder, port to listen on, the daemon's port)"""


def haproxy_sending(words: str, bind: str = "") -> Start:
    def start(folder: Path, port: int, target: int) -> contextlib.AbstractContextManager[int]:
        return haproxy(
            folder,
            f"listen edge\n    mode tcp\n    bind 127.0.0.1:{port} {bind}\n"
            f"    server one 127.0.0.1:{target} source {PROXY_ADDRESS} {words}\n",
            port,
        )

    return start


def nginx_sending(folder: Path, port: int, target: int) -> contextlib.AbstractContextManager[int]:
    server = f"listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{target}; proxy_bind {PROXY_ADDRESS}; proxy_protocol on;"
    return nginx(folder, port, stream=f"server {{ {server} }}")


def envoy_sending(version: str) -> Start:
    def start(folder: Path, port: int, target: int) -> contextlib.AbstractContextManager[int]:
        types = "type.googleapis.com/envoy.extensions"
        return envoy(
            folder,
            f"""
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.tcp_proxy
              typed_config:
                "@type": {types}.filters.network.tcp_proxy.v3.TcpProxy
                stat_prefix: edge
                cluster: edge
  clusters:
    - name: edge
      type: STATIC
      upstream_bind_config: {{source_address: {{address: {PROXY_ADDRESS}, port_value: 0}}}}
      load_assignment:
        cluster_name: edge
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {target}}}}}}}
      transport_socket:
        name: envoy.transport_sockets.upstream_proxy_protocol
        typed_config:
          "@type": {types}.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport
          config: {{version: {version}}}
          transport_socket:
            name: envoy.transport_sockets.raw_buffer
            typed_config: {{"@type": {types}.transport_sockets.raw_buffer.v3.RawBuffer}}
""",
            port,
        )

    return start


SENDERS: dict[str, Start] = {
    "haproxy v1": haproxy_sending("send-proxy"),
    "haproxy v2": haproxy_sending("send-proxy-v2"),
    "haproxy v2 with TLVs": haproxy_sending("send-proxy-v2 proxy-v2-options crc32c,unique-id"),
    "nginx": nginx_sending,
    "envoy v1": envoy_sending("V1"),
    "envoy v2": envoy_sending("V2"),
}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with edge_behind_proxies(tmp_path_factory.mktemp("tls"), MAX_PER_ADDRESS) as edge:
        yield edge


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("sender", SENDERS)
def test_addresses_are_the_clients(behind: Behind, tmp_path: Path, sender: str, tls: bool) -> None:
    """Each of three clients is logged by its own address, at its beginning and at its end, and when it is refused."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(SENDERS[sender](tmp_path, free_port(), behind.edge.ports[TLS if tls else PLAIN]))
        before = {message: len(behind.logged(message)) for message in ("spliced", "connection ended")}
        for address in CLIENTS:
            assert behind.call(stack.enter_context(SourceWire(port, address)), tls=tls) == b"through"
    for message, count in before.items():
        behind.wait_logged(message, count + len(CLIENTS))
        peers = {str(record["peer"]).partition(":")[0] for record in behind.logged(message)[count:]}
        assert peers == set(CLIENTS), message


@pytest.mark.parametrize("sender", ["haproxy v2", "nginx"])
def test_one_client_at_its_limit_puts_nobody_else_out(tmp_path: Path, sender: str) -> None:
    """Of more connections of one client than may be, the oldest go; those of others by the same proxy stay."""

    def connect(wire: SourceWire) -> socket.socket:
        return stack.enter_context(socket.create_connection(("127.0.0.1", wire.port)))

    with contextlib.ExitStack() as stack:
        patient = stack.enter_context(edge_behind_proxies(tmp_path, MAX_PER_ADDRESS, greeting_deadline_s=60))
        port = stack.enter_context(SENDERS[sender](tmp_path, free_port(), patient.edge.ports[PLAIN]))
        greedy, other = (stack.enter_context(SourceWire(port, address)) for address in CLIENTS[:2])
        waiting = connect(other)
        for _ in range(MAX_PER_ADDRESS):
            connect(greedy)
        time.sleep(1.5 * GRACE_S)
        before = patient.outcomes().get("over-limit", 0)
        for _ in range(2):
            connect(greedy)
        patient.wait_outcome("over-limit", before + 2)
        assert patient.call(other, tls=False) == b"through"
        assert patient.outcomes()["over-limit"] == before + 2
        waiting.settimeout(0)
        with pytest.raises(BlockingIOError):
            waiting.recv(1)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_haproxys_health_checks(behind: Behind, tmp_path: Path, version: str, tls: bool) -> None:
    """They send a header (v1: the check's own addresses, v2: LOCAL) and go: probes, not a line in the log, and UP."""
    start = haproxy_sending(f"{version} check check-send-proxy inter 50 rise 2 fall 1")
    before = behind.outcomes()
    lines = len(behind.lines_of_connections())
    with start(tmp_path, free_port(), behind.edge.ports[TLS if tls else PLAIN]) as port:
        behind.wait_outcome("probe", before.get("probe", 0) + CHECKS)
        with SourceWire(port, CLIENTS[0]) as wire:
            assert behind.call(wire, tls=tls) == b"through", "it is UP"
    after = behind.outcomes()
    assert {kind for kind in after if after[kind] != before.get(kind, 0)} <= {"probe", "spliced"}
    assert {record["message"] for record in behind.lines_of_connections()[lines:]} <= {"spliced", "connection ended"}


def test_a_proxy_that_sends_no_header_is_refused_and_the_log_says_why(behind: Behind, tmp_path: Path) -> None:
    before = behind.outcomes().get("no-proxy-header", 0)
    with (
        haproxy_sending("")(tmp_path, free_port(), behind.edge.ports[PLAIN]) as port,
        SourceWire(port, CLIENTS[0]) as wire,
        pytest.raises(CallError),
    ):
        behind.call(wire, tls=False)
    behind.wait_outcome("no-proxy-header", before + 1)
    told = [record for record in behind.logged("connection ended") if record["end"] == "no-proxy-header"]
    assert "does not begin with a PROXY protocol header" in str(told[-1]["error"])
