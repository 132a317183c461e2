"""Frontends and clients that speak HTTP/2 themselves, and two tenants at once: who puts both on one connection.

A connection is one capability, admitted by its first request. What docs/proxies.md says of each setting is
shown here: those that mix tenants do so, or the test says that they are better now, and those that it recommends never do.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest
import trustme

from beds.hosts.frontends import envoy, haproxy, nginx
from beds.hosts.in_process import TOKEN, write_config
from beds.hosts.served import SECTIONS, Served
from beds.http2 import EMPTY_SETTINGS
from beds.peers.cases import CASES
from beds.peers.kinds import CLIENT_KINDS, CLIENTS, or_skip
from beds.ports import free_port
from beds.programs import program
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.daemon.testbed.satellite import SERVICE
from bentpipe.proto.frames import END_HEADERS, PREFACE, FrameType, frame

NAMED = program("peers.named_satellite")
TENANTS = ("red", "blue")
CALLS = 40
TIMEOUT_S = 20.0
MANY, ONE = 1, 2
"""Indices of the daemon's ports: an ordinary one, and one with one_request_per_connection."""
LOCAL_POOL = ("grpc.use_local_subchannel_pool", 1)

Start = Callable[[Path, int, int], contextlib.AbstractContextManager[int]]
"""(folder, port to listen on, the daemon's port)"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where satellites write down what tokens they see."""
    return tmp_path_factory.mktemp("seen")


@pytest.fixture(scope="module")
def edge(seen: Path) -> Iterator[EdgeHost]:
    """Two tenants: each has a token for its own satellite and for no other."""
    listener = '[[listener]]\naddress = "127.0.0.1:0"\n'
    satellites, settings = [], f"{listener}{listener}one_request_per_connection = true\n"
    for name in TENANTS:
        command = (*NAMED, "127.0.0.1", "{port}", name, str(seen / name))
        satellites.append(DemoSatellite(name, command=command))
        digest = hashlib.sha256(f"bp_{name}".encode()).hexdigest()
        settings += f'[[token]]\nname = "{name}"\nhash = "sha256:{digest}"\ngrants = ["{ORG}/{name}"]\n'
    satellites += [DemoSatellite(f"demo-{kind}", ("--boot", "0.6")) for kind in CLIENT_KINDS]
    with EdgeHost(satellites, sleep_after_s=600, settings=settings) as host:
        yield host


def tokens_in(file: Path) -> list[str]:
    """The tokens that came to a tenant's satellite, in order."""
    return [line.split()[1] for line in file.read_text().splitlines()] if file.exists() else []


@dataclasses.dataclass(frozen=True)
class Tally:
    """What came of all calls: how many were answered by the tenant's own satellite, by the other's, and failed."""

    own: int = 0
    mixed: int = 0
    failures: tuple[str, ...] = ()


def call(channel: grpc.Channel, tenant: str) -> str:
    metadata = (("satellite_name", tenant), ("satellite_org", ORG), ("satellite_token", f"bp_{tenant}"))
    answer: bytes = channel.unary_unary(f"/{SERVICE}/Echo")(b"who?", metadata=metadata, timeout=TIMEOUT_S)
    return answer.decode()


def both_at_once(open_channel: Callable[[], grpc.Channel], ways: Sequence[str] = ("together", "in turn")) -> Tally:
    """Two clients, each with a connection of its own to the frontend: calls of both at the same time, and one by one."""
    answers: list[tuple[str, str]] = []
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        channels = {tenant: stack.enter_context(open_channel()) for tenant in TENANTS}
        start = threading.Barrier(2 * len(TENANTS))

        def ask(tenant: str) -> None:
            try:
                answers.append((tenant, call(channels[tenant], tenant)))
            except grpc.RpcError as exc:
                failures.append(f"{exc.code().name}: {exc.details()}")

        def many(tenant: str) -> None:
            start.wait()
            for _ in range(CALLS):
                ask(tenant)

        if "together" in ways:
            with concurrent.futures.ThreadPoolExecutor(2 * len(TENANTS)) as pool:
                list(pool.map(many, TENANTS * 2))
        if "in turn" in ways:
            for _ in range(CALLS):
                for tenant in TENANTS:
                    ask(tenant)
    own = sum(asked == answered for asked, answered in answers)
    return Tally(own, len(answers) - own, tuple(failures))


def haproxy_with(server: str, backend: str = "", mode: str = "http", bind: str = " proto h2") -> Start:
    def start(folder: Path, port: int, target: int) -> contextlib.AbstractContextManager[int]:
        return haproxy(
            folder,
            f"listen edge\n    mode {mode}\n    bind 127.0.0.1:{port}{bind}\n    {backend}\n"
            f"    server one 127.0.0.1:{target} {server}\n",
            port,
        )

    return start


def nginx_http(upstream: str) -> Start:
    def start(folder: Path, port: int, target: int) -> contextlib.AbstractContextManager[int]:
        http = (
            f"upstream edge {{ server 127.0.0.1:{target}; {upstream} }}\n"
            f"server {{ listen 127.0.0.1:{port} http2; location / {{ grpc_pass grpc://edge; }} }}"
        )
        return nginx(folder, port, http=http)

    return start


def nginx_stream(folder: Path, port: int, target: int) -> contextlib.AbstractContextManager[int]:
    return nginx(folder, port, stream=f"server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{target}; }}")


ENVOY = """
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {types}.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: edge
                codec_type: HTTP2
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{{match: {{prefix: /}}, route: {{cluster: edge, timeout: 0s}}}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": {types}.filters.http.router.v3.Router}}
  clusters:
    - name: edge
      type: STATIC
      {cluster}
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": {types}.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {{http2_protocol_options: {{}}}}
          {options}
      load_assignment:
        cluster_name: edge
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {target}}}}}}}
"""


def envoy_http(cluster: str = "", options: str = "") -> Start:
    def start(folder: Path, port: int, target: int) -> contextlib.AbstractContextManager[int]:
        types = "type.googleapis.com/envoy.extensions"
        text = ENVOY.format(port=port, target=target, types=types, cluster=cluster, options=options)
        return envoy(folder, text, port)

    return start


MIXES: dict[str, Start] = {
    "haproxy mode http": haproxy_with("proto h2"),
    "haproxy mode http, reuse always": haproxy_with("proto h2", "http-reuse always"),
    "nginx with keepalive": nginx_http("keepalive 16;"),
    "envoy": envoy_http(),
}
KEEPS_APART: dict[str, Start] = {
    "haproxy mode tcp": haproxy_with("", mode="tcp", bind=""),
    "haproxy mode http, reuse never": haproxy_with("proto h2", "http-reuse never"),
    "nginx stream": nginx_stream,
    "nginx without keepalive": nginx_http(""),
    "envoy, a pool a client": envoy_http("connection_pool_per_downstream_connection: true"),
    "envoy, a connection a request": envoy_http(
        options="common_http_protocol_options: {max_requests_per_connection: 1}"
    ),
}


def through(edge: EdgeHost, folder: Path, start: Start, daemon_port: int = MANY) -> Tally:
    with start(folder, free_port(), edge.ports[daemon_port]) as port:
        return both_at_once(lambda: grpc.insecure_channel(f"127.0.0.1:{port}", options=[LOCAL_POOL]))


@pytest.mark.parametrize("frontend", MIXES)
def test_by_default_both_tenants_are_on_one_connection(edge: EdgeHost, tmp_path: Path, frontend: str) -> None:
    tally = through(edge, tmp_path, MIXES[frontend])
    assert tally.mixed > 0, f"{frontend} mixes no more: docs/proxies.md may recommend it ({tally})"


@pytest.mark.parametrize("frontend", KEEPS_APART)
def test_as_recommended_they_never_are(edge: EdgeHost, tmp_path: Path, frontend: str) -> None:
    assert through(edge, tmp_path, KEEPS_APART[frontend]) == Tally(own=CALLS * 3 * len(TENANTS))


def test_grpcios_channels_of_one_process_share_a_connection_unless_told_otherwise(edge: EdgeHost) -> None:
    def shared() -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{edge.ports[MANY]}")

    def own() -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{edge.ports[MANY]}", options=[LOCAL_POOL])

    assert both_at_once(shared).mixed > 0, "grpcio shares no more: docs/clients.md need not say so"
    assert both_at_once(own) == Tally(own=CALLS * 3 * len(TENANTS))


@pytest.mark.parametrize("frontend", MIXES | KEEPS_APART)
def test_with_one_request_a_connection_nobody_is_ever_mixed(
    edge: EdgeHost, seen: Path, tmp_path: Path, frontend: str
) -> None:
    """Whatever the frontend's settings. What it sent too early is refused, which a client may hear as UNAVAILABLE."""
    before = {tenant: len(tokens_in(seen / tenant)) for tenant in TENANTS}
    tally = through(edge, tmp_path, (MIXES | KEEPS_APART)[frontend], ONE)
    assert tally.mixed == 0
    assert tally.own + len(tally.failures) == CALLS * 3 * len(TENANTS)
    assert tally.own > CALLS * 2, "one by one at least all are answered"
    assert {failure.partition(":")[0] for failure in tally.failures} <= {"UNAVAILABLE"}
    for tenant in TENANTS:
        assert set(tokens_in(seen / tenant)[before[tenant] :]) == {f"bp_{tenant}"}, "nobody's token goes to another's"


@pytest.mark.parametrize("frontend", MIXES)
def test_with_one_request_a_connection_all_that_come_one_by_one_are_answered(
    edge: EdgeHost, tmp_path: Path, frontend: str
) -> None:
    with MIXES[frontend](tmp_path, free_port(), edge.ports[ONE]) as port:
        tally = both_at_once(lambda: grpc.insecure_channel(f"127.0.0.1:{port}", options=[LOCAL_POOL]), ("in turn",))
    assert tally == Tally(own=CALLS * len(TENANTS))


def test_with_one_request_a_connection_a_shared_pool_is_harmless(edge: EdgeHost) -> None:
    """gRPC's own clients read that there is to be one stream at once, and take another connection for the next."""
    tally = both_at_once(lambda: grpc.insecure_channel(f"127.0.0.1:{edge.ports[ONE]}"))
    assert tally == Tally(own=CALLS * 3 * len(TENANTS))


def test_with_one_request_a_connection_behind_tls(
    tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA
) -> None:
    """Two tenants on one channel, hence on one connection wherever there may be more than one request on it."""
    names = ("red", "blue")
    certificate = f'certificate = "{tmp_path / "cert.pem"}"\nkey = "{tmp_path / "key.pem"}"\n'
    listener = (
        f'[[listener]]\naddress = "127.0.0.1:0"\none_request_per_connection = true\n[listener.tls]\n{certificate}'
    )
    satellites = "".join(
        f'[[satellite]]\norg = "acme"\nname = "{name}"\n[satellite.process]\n'
        f"command = {[*NAMED, '127.0.0.1', '{port}', name, str(tmp_path / name)]}\n"
        for name in names
    )
    path = write_config(tmp_path, authority, client_authority, limits="", sections=SECTIONS + satellites + listener)
    answers: dict[bool, list[str]] = {}
    with Served(path) as served:
        one, many = served.ports[0], served.ports[2]
        for port in (many, one):
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
            with grpc.secure_channel(f"localhost:{port}", credentials, options=[LOCAL_POOL]) as channel:
                echo = channel.unary_unary(f"/{SERVICE}/Echo")
                answers[port == one] = [
                    echo(
                        b"who?",
                        metadata=(("satellite_name", name), ("satellite_org", "acme"), ("satellite_token", TOKEN)),
                        timeout=TIMEOUT_S,
                    ).decode()
                    for name in names * 10
                ]
    assert answers[True] == [*names] * 10
    assert answers[False] == [names[0]] * 20, "the other port shows that the channel would mix them"


ALONE = [case for case in CASES if case != "concurrent_streams"]
"""A hundred calls at once want a hundred connections here: clients that do not wait for SETTINGS hear UNAVAILABLE."""


NO_FRIEND_OF_GOAWAY = {
    "grpclib": "grpclib 0.4.9 gives up what is in flight at any GOAWAY",
    "tonic": "tonic 0.14 fails a call that comes while its connection closes behind a GOAWAY, instead of trying again",
}
"""Clients that are not for such a port; frontends are."""


@pytest.mark.parametrize("client_kind", CLIENT_KINDS)
def test_every_client_on_a_port_with_one_request_a_connection(edge: EdgeHost, client_kind: str) -> None:
    """Held at first, then awake: each of its calls has a connection of its own, from its first byte to its end."""
    if client_kind in NO_FRIEND_OF_GOAWAY:
        pytest.skip(NO_FRIEND_OF_GOAWAY[client_kind])
    metadata = (("satellite_name", f"demo-{client_kind}"), ("satellite_org", ORG), ("satellite_token", edge.token))
    with contextlib.closing(or_skip(CLIENTS[client_kind], edge.ports[ONE], None, metadata)) as client:
        for case in ALONE:
            CASES[case](client)
    assert edge.starts(f"demo-{client_kind}") == 1


FIRST = PREFACE + EMPTY_SETTINGS + frame(FrameType.HEADERS, END_HEADERS, 1, b"\x83")
TRAILERS = frame(FrameType.HEADERS, END_HEADERS, 1, b"\x0f\x00\x7f\xd0\x7c" + bytes(16_080))
OTHERS_DATA = frame(FrameType.DATA, 0, 3, bytes(16_384))


@pytest.mark.parametrize(
    ("said", "times", "limit"), [(TRAILERS, 17, b"TRANSCRIPT_BYTES"), (OTHERS_DATA, 2_001, b"FURTHER_FRAMES")]
)
def test_a_frontend_that_talks_on_and_never_reads_that_it_was_its_last_request_is_ended(
    edge: EdgeHost, said: bytes, times: int, limit: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", edge.ports[ONE]), TIMEOUT_S) as sock:
        sock.sendall(FIRST)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.extend(iter(lambda: sock.recv(4096), b"")))
        reader.start()
        with contextlib.suppress(ConnectionError):
            for _ in range(times):
                sock.sendall(said)
        reader.join(TIMEOUT_S)
    assert limit in b"".join(received)
