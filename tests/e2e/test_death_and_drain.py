"""A satellite that dies under a call, a client that vanishes while held, and SIGTERM."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import psutil
import pytest

from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.service.serve import EXIT_CUT, EXIT_OK
from bentpipe.daemon.testbed.client import DemoClient
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.daemon.testbed.satellite import SERVICE


def metadata(host: EdgeHost, satellite: str) -> tuple[tuple[str, str], ...]:
    return (("satellite_name", satellite), ("satellite_org", ORG), ("satellite_token", host.token))


def channel(host: EdgeHost) -> grpc.Channel:
    return grpc.secure_channel(
        f"localhost:{host.port}",
        grpc.ssl_channel_credentials(host.ca_pem),
        options=[("grpc.use_local_subchannel_pool", 1)],
    )


def satellite_processes(host: EdgeHost) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(host.pid).children(recursive=True)
        if "bentpipe.daemon.testbed.satellite" in " ".join(child.cmdline())
    ]


def test_satellite_killed_mid_stream_is_unavailable_at_once_and_woken_again() -> None:
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600) as host, channel(host) as opened:
        stop = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"first"
            stop.wait(30)

        call = opened.stream_stream(f"/{SERVICE}/Chat")(requests(), metadata=metadata(host, "sat"))
        assert next(call) == b"first"
        for process in satellite_processes(host):
            process.send_signal(signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as error:
            next(call)
        stop.set()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        host.wait_state("sat", SatelliteState.SLEEP, 10)
        with DemoClient(host, "sat") as client:
            assert client.echo(b"again") == b"again"
        assert host.starts("sat") == 2


def test_client_that_vanishes_while_held_gives_its_place_back() -> None:
    with EdgeHost([DemoSatellite("sat", ("--boot", "1"))], sleep_after_s=1) as host:
        opened = channel(host)
        call = opened.unary_unary(f"/{SERVICE}/Echo").future(b"x", metadata=metadata(host, "sat"))
        host.wait_state("sat", SatelliteState.STARTING, 10)
        opened.close()
        assert call.cancelled() or call.done()
        # The wake goes on without it; nobody holds a lease afterwards, so the satellite falls asleep again.
        host.wait_state("sat", SatelliteState.OPERATIONAL, 20)
        host.wait_state("sat", SatelliteState.SLEEP, 20)


def test_sigterm_without_connections_exits_clean() -> None:
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600) as host:
        assert host.stop() == EXIT_OK


def test_sigterm_lets_a_splice_finish_and_takes_nobody_new() -> None:
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600) as host:
        with channel(host) as opened:
            call = opened.unary_unary(f"/{SERVICE}/Sleep").future(b"2", metadata=metadata(host, "sat"))
            host.wait_state("sat", SatelliteState.OPERATIONAL, 20)
            host.wait_message("spliced", 10)
            os.kill(host.pid, signal.SIGTERM)
            host.wait_message("draining", 10)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", host.port), timeout=5)
            assert call.result(timeout=20) == b"awake"
        assert host.wait() == EXIT_OK


def test_sigterm_cuts_at_the_drain_deadline_and_says_so() -> None:
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600, drain_deadline_s=1) as host, channel(host) as opened:
        call = opened.unary_unary(f"/{SERVICE}/Sleep").future(b"60", metadata=metadata(host, "sat"))
        host.wait_message("spliced", 20)
        os.kill(host.pid, signal.SIGTERM)
        assert host.wait() == EXIT_CUT
        with pytest.raises(grpc.RpcError) as error:
            call.result(timeout=20)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_sigterm_refuses_held_clients_in_words() -> None:
    with EdgeHost([DemoSatellite("sat", ("--boot", "20"))], sleep_after_s=600) as host, channel(host) as opened:
        call = opened.unary_unary(f"/{SERVICE}/Echo").future(b"x", metadata=metadata(host, "sat"))
        host.wait_state("sat", SatelliteState.STARTING, 10)
        os.kill(host.pid, signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as error:
            call.result(timeout=20)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in error.value.details()
        assert host.wait() == EXIT_OK


def test_no_satellite_process_outlives_the_daemon() -> None:
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600) as host:
        with DemoClient(host, "sat") as client:
            assert client.echo(b"x") == b"x"
        processes = satellite_processes(host)
        assert processes
        assert host.stop() == EXIT_OK
        deadline = time.monotonic() + 10
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            assert time.monotonic() < deadline
            time.sleep(0.02)
