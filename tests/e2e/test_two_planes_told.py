"""What the control plane tells its data plane, and what it learns from it: limits, certificates, records, counters."""

import contextlib
import re
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import trustme
from cryptography import x509

from beds.hosts.one_satellite import KEY
from beds.hosts.two_planes import DEADLINE_S, PLAIN, TLS, TwoPlanes, read_intervals, two_planes
from beds.metrics import scrape
from beds.ports import free_port
from bentpipe.daemon.model import SatelliteState
from bentpipe.daemon.service.planes import OTHER_PORTS

BULK_BYTES, CHUNK_BYTES = 2_000_000, 100_000


@contextlib.contextmanager
def measured(tmp_path: Path) -> Iterator[tuple[TwoPlanes, int]]:
    """A host, and the port of its metrics."""
    port = free_port()
    with two_planes(tmp_path, sections=f'[metrics]\naddress = "127.0.0.1:{port}"') as host:
        yield host, port


def states_in(host: TwoPlanes) -> list[SatelliteState]:
    """The states that the satellite was in, as the ledger has them."""
    return [each.state for each in read_intervals(host.ledger) if each.key == KEY]


def test_what_ends_before_it_is_offered_is_in_the_control_planes_records_once(tmp_path: Path) -> None:
    with measured(tmp_path) as (host, metrics):
        for _ in range(3):
            socket.create_connection(("127.0.0.1", host.ports[PLAIN])).close()
        with socket.create_connection(("127.0.0.1", host.ports[TLS])) as broken:
            # A handshake record that holds no handshake.
            broken.sendall(b"\x16\x03\x01\x00\x04what")
            with contextlib.suppress(ConnectionError):
                broken.recv(100)

        def ended(code: str) -> list[dict[str, object]]:
            lines = [each for each in host.records() if each["message"] == "connection ended"]
            return [each for each in lines if each["end"] == code]

        host.wait(lambda: len(ended("probe")) == 3 and len(ended("tls-failed")) == 1, "there are no records")
        # The control plane has written the lines: the ids of the data plane begin with "host-".
        assert all(re.fullmatch(r"(?!host-).+", str(each["id"])) for each in ended("probe") + ended("tls-failed"))
        found = scrape(metrics)
        assert found["bentpipe_connection_seconds_count", ""] == 4
        quoted = str(ended("tls-failed")[0]["id"])
        host.wait(lambda: "the TLS handshake failed" in host.run("why", quoted), "the store does not have it")
        assert len(ended("probe")) == 3, "they were written twice"


def test_listeners_that_the_living_data_plane_does_not_have_are_told(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host:
        assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
        elsewhere = free_port()
        text = host.config.read_text()
        host.config.write_text(text.replace(f"127.0.0.1:{host.ports[PLAIN]}", f"127.0.0.1:{elsewhere}"))
        host.start()
        host.wait(lambda: host.count(OTHER_PORTS) == 1, "it is not told")
        [told] = [each for each in host.records() if each["message"] == OTHER_PORTS]
        assert (told["not_open"], told["open"]) == ([elsewhere], sorted(host.ports))
        host.config.write_text(text)


def ask_by_http(port: int) -> bytes:
    """The status line of the answer to a request that only the control API serves."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client:
        client.sendall(b"GET /api/v0/health HTTP/1.1\r\nhost: edge\r\n\r\n")
        return client.makefile("rb").readline()


def test_the_order_of_listeners_does_not_matter_to_the_next_control_plane(tmp_path: Path) -> None:
    """The API stays at its port, and comes to no other one."""
    with two_planes(tmp_path) as host:
        text = host.config.read_text()
        assert host.end_control(signal.SIGTERM) == 0
        place = f'address = "127.0.0.1:{host.ports[PLAIN]}"\n'
        closed = f'[[listener]]\naddress = "127.0.0.1:{free_port()}"\n'
        api = f"[[listener]]\n{place}"
        assert api in text
        before, after = (
            text.replace(api, both) for both in (api + "api = true\n" + closed, closed + api + "api = true\n")
        )
        ports = host.ports[PLAIN], int(closed.rpartition(":")[2].strip('"\n'))
        host.config.write_text(before)
        host.start()
        answers = [ask_by_http(port) for port in ports]
        assert answers[0] != answers[1]
        assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
        host.config.write_text(after)
        host.start()
        assert [ask_by_http(port) for port in ports] == answers
        assert not host.count(OTHER_PORTS)


def test_the_metrics_show_the_data_planes_engine(tmp_path: Path) -> None:
    with measured(tmp_path) as (host, metrics), contextlib.closing(host.client()) as client:
        sent, got = client.bulk(BULK_BYTES, CHUNK_BYTES)
        assert sent == got

        def moved() -> float:
            found = scrape(metrics)
            return found["bentpipe_engine_bytes_total", "splice"] + found["bentpipe_engine_bytes_total", "copy"]

        host.wait(lambda: moved() >= 2 * BULK_BYTES, "the engine's bytes are not told")
        found = scrape(metrics)
        assert found["bentpipe_engine_live", ""] == 1
        for thread in ("0", "opener-0", "joiner-0"):
            assert found["bentpipe_engine_turns_total", thread] > 0
            assert found["bentpipe_engine_cpu_seconds_total", thread] > 0
            assert ("bentpipe_engine_turn_running_seconds", thread) in found
        # What a plane that is gone had moved stays in the sum.
        before = moved()
        with contextlib.suppress(ProcessLookupError):
            host.kill_plane()
        host.wait(lambda: len(host.plane_pids()) == 2, "it is not started again")
        host.wait(lambda: scrape(metrics)["bentpipe_engine_live", ""] == 0, "the splice counts still")
        assert moved() >= before


def survives(host: TwoPlanes) -> bool:
    """Whether a client that says nothing is left alone for a while."""
    with socket.create_connection(("127.0.0.1", host.ports[PLAIN])) as silent:
        silent.settimeout(1.5)
        try:
            return silent.recv(1) != b""
        except TimeoutError:
            return True


def test_a_reload_changes_the_limits_of_the_data_plane(tmp_path: Path) -> None:
    with two_planes(tmp_path, sections='[limits]\ngreeting_deadline = "100ms"') as host:
        assert host.control is not None
        while survives(host):
            pass  # on a machine with much to do its deadline is late
        # The key of the form may go at the same time: what it said is what is chosen without it.
        text = host.config.read_text().replace('data_plane = "process"\n', "")
        host.config.write_text(text.replace('"100ms"\n[ec2]', '"300s"\n[ec2]'))
        host.control.send_signal(signal.SIGHUP)
        host.wait(lambda: host.count("reloaded") == 1, "it does not reload")
        # The limit is on its way to the data plane: it holds for clients that come after that.
        until = time.monotonic() + DEADLINE_S
        while not survives(host):
            assert time.monotonic() < until, host.log_path.read_text()


def test_a_satellite_in_use_is_never_unknown_though_control_planes_die_while_they_probe_it(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host, contextlib.closing(host.client()) as client:
        assert client.unary("Echo", b"hello") == b"hello"
        assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
        text = host.config.read_text()
        # It is not certain for long enough that the address is still the machine's: the probe does not end.
        host.config.write_text(text.replace('poll = "50ms"', 'poll = "50ms"\naddress_age = "1us"'))
        host.start()
        host.wait(lambda: states_in(host)[-1] is SatelliteState.STARTING, "it is not probed")
        assert host.end_control(signal.SIGKILL) == -signal.SIGKILL
        host.config.write_text(text)
        host.start()
        host.wait(lambda: host.states()[-1:] == ["operational"], "it is not found again")
        assert client.unary("Echo", b"again") == b"again"
        assert host.end_control(signal.SIGTERM) in (0, 3)
        states = states_in(host)
    used = states[states.index(SatelliteState.OPERATIONAL) : -1]  # the last interval is that of the end
    assert SatelliteState.STARTING in used
    assert set(used) == {SatelliteState.OPERATIONAL, SatelliteState.STARTING}


def test_the_data_plane_tells_until_when_its_certificates_hold(tmp_path: Path) -> None:
    with measured(tmp_path) as (host, metrics):
        chain = (tmp_path / "cert.pem").read_bytes()
        end = x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()
        name = "bentpipe_certificate_end_seconds", str(tmp_path / "cert.pem")
        host.wait(lambda: scrape(metrics).get(name) == end, "the metrics do not show it")


def test_a_reload_has_the_data_plane_show_another_file(tmp_path: Path) -> None:
    """As a host does that goes over to one file for key and certificate."""
    with two_planes(tmp_path) as host:
        assert host.control is not None
        other = trustme.CA()
        issued = other.issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "tls.pem")
        text = host.config.read_text()
        for name in ("cert.pem", "key.pem"):
            text = text.replace(f'"{tmp_path / name}"', f'"{tmp_path / "tls.pem"}"')
        host.config.write_text(text)
        host.control.send_signal(signal.SIGHUP)
        host.wait(lambda: host.count("reloaded") == 1, "it does not reload")
        context = ssl.create_default_context()
        other.configure_trust(context)
        with socket.create_connection(("127.0.0.1", host.ports[TLS])) as sock:
            context.wrap_socket(sock, server_hostname="localhost").close()
        host.config.write_text(text.replace(f':{host.ports[TLS]}"', f':{free_port()}"'))
        host.control.send_signal(signal.SIGHUP)
        host.wait(lambda: host.count("not reloaded") > 0, "another port needs a restart of the data plane")
