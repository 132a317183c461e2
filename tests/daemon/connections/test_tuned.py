"""What a listening socket accepts needs no options of its own: it has those of the listening socket."""

import socket

import pytest

from bentpipe.daemon.connections.transport import KEEPALIVE_IDLE_S, USER_TIMEOUT_MS, tune_socket

OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
)


def options_of(sock: socket.socket) -> list[int]:
    return [sock.getsockopt(*option) for option in OPTIONS]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_accepted_socket_has_the_options_of_its_listening_socket(family: socket.AddressFamily) -> None:
    if family is socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    host = "127.0.0.1" if family is socket.AF_INET else "::1"
    with (
        socket.create_server((host, 0), family=family) as plain,
        socket.create_connection(plain.getsockname()[:2]),
        plain.accept()[0] as accepted,
    ):
        untuned = options_of(accepted)
    with socket.create_server((host, 0), family=family) as server:
        tune_socket(server)
        with socket.create_connection(server.getsockname()[:2]) as client:
            server.settimeout(30)
            with server.accept()[0] as accepted:
                tune_socket(client)
                assert options_of(accepted) == options_of(client)
                assert options_of(accepted) != untuned
                assert (options_of(accepted)[2], options_of(accepted)[5]) == (KEEPALIVE_IDLE_S, USER_TIMEOUT_MS)
