"""A real client that can send no metadata: SNI says which satellite, its certificate who it is."""

import grpc
import trio
import trustme

from beds.hosts.in_process import MUTUAL, SATELLITE_DOMAIN, TLS, TOKEN, counted
from beds.quoted import without_id
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.satellite import SERVICE

Call = tuple[grpc.StatusCode, str]


async def call(
    daemon: Daemon,
    port: int,
    authority: trustme.CA,
    server_name: str,
    metadata: tuple[tuple[str, str], ...] = (),
    shown: trustme.LeafCert | None = None,
) -> Call:
    """Echo, over a connection of its own; what came back, or the error's words."""
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        shown.private_key_pem.bytes() if shown else None,
        b"".join(blob.bytes() for blob in shown.cert_chain_pems) if shown else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", server_name)]

    def run() -> Call:
        with grpc.secure_channel(f"127.0.0.1:{daemon.addresses[port][1]}", credentials, options=options) as channel:
            try:
                answer = channel.unary_unary(f"/{SERVICE}/Echo")(b"hello", metadata=metadata, timeout=20)
            except grpc.RpcError as exc:
                return exc.code(), without_id(exc.details())
            return grpc.StatusCode.OK, answer.decode()

    return await trio.to_thread.run_sync(run)


def sni(name: str) -> str:
    return f"{name}.acme.{SATELLITE_DOMAIN}"


async def test_certificate_and_server_name(daemon: Daemon, authority: trustme.CA, client_authority: trustme.CA) -> None:
    dev = client_authority.issue_cert("dev@example.com")
    stranger = client_authority.issue_cert("stranger@example.com")
    assert await call(daemon, MUTUAL, authority, sni("sat"), shown=dev) == (grpc.StatusCode.OK, "hello")
    for name in ("other", "nowhere"):
        code, words = await call(daemon, MUTUAL, authority, sni(name), shown=dev)
        assert (code, words) == (grpc.StatusCode.NOT_FOUND, "no such satellite, or not yours")
    code, _ = await call(daemon, MUTUAL, authority, sni("sat"), shown=stranger)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    token = (("satellite_token", TOKEN),)
    assert await call(daemon, MUTUAL, authority, sni("sat"), token, stranger) == (grpc.StatusCode.OK, "hello")


async def test_a_port_for_certificates_takes_nobody_without(daemon: Daemon, authority: trustme.CA) -> None:
    code, _ = await call(daemon, MUTUAL, authority, sni("sat"), (("satellite_token", TOKEN),))
    assert code is grpc.StatusCode.UNAVAILABLE
    await counted(daemon, Outcome.TLS_FAILED)


async def test_bearer_token_and_server_name(daemon: Daemon, authority: trustme.CA) -> None:
    bearer = (("authorization", f"Bearer {TOKEN}"),)
    assert await call(daemon, TLS, authority, sni("sat"), bearer) == (grpc.StatusCode.OK, "hello")
    conflict = (*bearer, ("satellite_org", "acme"), ("satellite_name", "other"))
    code, words = await call(daemon, TLS, authority, sni("sat"), conflict)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "different satellites" in words
    assert (await call(daemon, TLS, authority, sni("sat")))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_a_certificate_of_a_foreign_ca_ends_in_the_handshake(daemon: Daemon, authority: trustme.CA) -> None:
    code, _ = await call(daemon, MUTUAL, authority, sni("sat"), shown=trustme.CA().issue_cert("dev@example.com"))
    assert code is grpc.StatusCode.UNAVAILABLE
