"""What became of each connection: one record for each, in the log, the store and the metrics; and `bentpipe why`."""

import http.client
import json
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trustme
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from beds.hosts.form import serve_file
from beds.hosts.in_process import PLAIN, TLS, TOKEN, counted, exchange, said, write_config
from beds.http2 import EMPTY_SETTINGS
from beds.peers.crowd import PREFACE, call
from beds.quoted import QUOTED
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.records.lines import LINE
from bentpipe.daemon.service.serve import Daemon

DEADLINE_S = 20.0
BROKEN_FRAME = b"\0\0\1\0\0\0\0\0\1x"


@pytest.fixture
def config_path(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> Path:
    sections = (
        f'[metrics]\naddress = "127.0.0.1:0"\nper_satellite = true\nper_org = true\n'
        f'[store]\npath = "{tmp_path / "ledger.sqlite"}"\n[control]\npath = "{tmp_path / "control.sock"}"\n'
    )
    return write_config(
        tmp_path, authority, client_authority, limits='greeting_deadline = "1s"', boot_s=0.5, sections=sections
    )


@pytest.fixture
async def daemon(config_path: Path) -> AsyncIterator[Daemon]:
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, config_path)
        yield running
        running.handoff.abort_all()
        running.drain.set()


def why(config_path: Path, *arguments: str, code: int = 0) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bentpipe.daemon.service.cli", "why", "--config", str(config_path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


async def asked(config_path: Path, *arguments: str, code: int = 0) -> str:
    return await trio.to_thread.run_sync(lambda: why(config_path, *arguments, code=code))


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [getattr(record, "fields") for record in caplog.records if record.message == LINE]  # noqa: B009


async def told(caplog: pytest.LogCaptureFixture, count: int) -> list[dict[str, object]]:
    """Wait until so many connections have ended."""
    with trio.fail_after(DEADLINE_S):
        while len(lines(caplog)) < count:
            await trio.sleep(0.01)
    return lines(caplog)


async def test_every_connection_has_one_record_whatever_its_end(
    daemon: Daemon, caplog: pytest.LogCaptureFixture, authority: trustme.CA
) -> None:
    caplog.set_level("INFO")
    expected: dict[str, Callable[[], Awaitable[bytes]]] = {
        "refused": lambda: exchange(daemon, PLAIN, call("sat", "bp_wrong")),
        "malformed": lambda: exchange(daemon, PLAIN, PREFACE + EMPTY_SETTINGS + BROKEN_FRAME),
        "http1": lambda: exchange(daemon, PLAIN, b"GET / HTTP/1.1\r\n\r\n"),
        "not-http2": lambda: exchange(daemon, PLAIN, b"\x00\x00nonsense" * 20),
        "probe": lambda: exchange(daemon, PLAIN, b"", close=True),
        "deadline": lambda: exchange(daemon, PLAIN, PREFACE + EMPTY_SETTINGS),
        "tls-on-plain-port": lambda: exchange(daemon, PLAIN, b"\x16\x03\x01\x00\xc8" + b"\1" * 200),
        "plain-on-tls-port": lambda: exchange(daemon, TLS, call("sat", TOKEN)),
        "tls-failed": lambda: exchange(daemon, TLS, b"\x16\x03\x01\x00\x04nope"),
        "untrusted-proxy-header": lambda: exchange(daemon, PLAIN, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        "client-gone": lambda: exchange(daemon, PLAIN, call("sat", TOKEN), close=True),
    }
    quoted: dict[str, bytes] = {}
    for number, (code, happen) in enumerate(expected.items(), start=1):
        answer = await happen()
        found = (await told(caplog, number))[-1]
        assert found["end"] == code
        assert found["reason"]
        in_answer = QUOTED.search(said(answer)) or re.search(rb"Bentpipe-Connection: (\S+)\r\n", answer)
        if in_answer is not None:
            quoted[code] = in_answer[1]
            assert in_answer[1].decode() == found["id"]
    # A plaintext client of a TLS port cannot be told by TLS, a probe and a client that has left hear nothing.
    assert set(quoted) == {"refused", "malformed", "http1", "deadline", "plain-on-tls-port"}
    assert (daemon.edge.book.opened, daemon.edge.book.open_count) == (len(expected), 0)
    with trio.fail_after(DEADLINE_S):
        while daemon.counters.accepted != len(expected):  # a data plane of its own tells it once a second
            await trio.sleep(0.05)
    assert len({each["id"] for each in lines(caplog)}) == len(expected)


async def test_a_spliced_connection_tells_its_phases_and_all_its_bytes(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sent = call("sat", TOKEN, b"x" * 10_000)
    received = 0
    async with await trio.open_tcp_stream(*daemon.addresses[PLAIN]) as stream:
        await stream.send_all(sent)
        await counted(daemon, Outcome.SPLICED)
        with trio.move_on_after(1.0):
            while data := await stream.receive_some():
                received += len(data)
    (found,) = await told(caplog, 1)
    order = [
        f"{name}_s" for name in ("greeted", "admitted", "held", "leased", "dialled", "spliced", "last_byte", "ended")
    ]
    times = [found[name] for name in order]
    assert times == sorted(times, key=lambda each: float(str(each)))
    assert float(str(found["leased_s"])) - float(str(found["held_s"])) > 0.3, "it waited for the satellite's boot"
    assert (found["end"], found["principal"], found["satellite"], found["woken_by"]) == (
        *("closed", "test", "acme/sat", "test"),
    )
    assert (found["up_bytes"], found["down_bytes"]) == (len(sent), received)
    assert float(str(found["first_byte_s"])) <= float(str(found["last_byte_s"]))


async def test_a_client_that_closes_tls_without_close_notify_is_not_an_error(
    daemon: Daemon, caplog: pytest.LogCaptureFixture, authority: trustme.CA
) -> None:
    caplog.set_level("INFO")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream(*daemon.addresses[TLS])
    stream = trio.SSLStream(tcp, context, server_hostname="localhost")
    await stream.send_all(call("sat", TOKEN))
    await counted(daemon, Outcome.SPLICED)
    await stream.receive_some(1)
    await tcp.send_eof()
    (found,) = await told(caplog, 1)
    await tcp.aclose()
    assert (found["end"], found["reason"]) == ("client_truncated", "the client closed it, without close_notify")
    assert [record.levelname for record in caplog.records if record.message == LINE] == ["INFO"]


async def test_a_refused_client_can_quote_the_id_and_the_operator_asks_why(daemon: Daemon, config_path: Path) -> None:
    answer = await exchange(daemon, PLAIN, call("broken", TOKEN))
    quoted = QUOTED.search(said(answer))
    assert quoted is not None
    text = await asked(config_path, quoted[1].decode().upper())
    assert f"connection {quoted[1].decode()} on " in text
    assert "of test, for satellite acme/broken" in text
    assert re.search(r"\+\d+\.\d{3} s  it was admitted as test", text)
    assert re.search(r"refused: its satellite could not be used with status UNAVAILABLE", text)
    assert "reason: " in text
    daemon.drain.set()
    with trio.fail_after(DEADLINE_S):
        while (config_path.parent / "control.sock").exists():
            await trio.sleep(0.05)
    again = await asked(config_path, quoted[1].decode())
    assert again == text, "the store has it after the daemon's end"


async def test_an_open_connection_is_known_too(daemon: Daemon, config_path: Path) -> None:
    async with await trio.open_tcp_stream(*daemon.addresses[PLAIN]) as stream:
        await stream.send_all(call("sat", TOKEN))
        await counted(daemon, Outcome.SPLICED)
        (line,) = (await asked(config_path, "--satellite", "acme/sat", "--json")).splitlines()
        fields = json.loads(line)
        assert (fields["end"], fields["principal"]) == ("open", "test")
        assert "it is still open" in await asked(config_path, fields["id"])
    assert await asked(config_path, "--satellite", "acme/other") == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [("nonsense", "is not a connection's id"), ("000000-zzzz-00000", "by another host: this one's ids have ")],
)
async def test_an_id_that_nobody_knows(daemon: Daemon, config_path: Path, text: str, words: str) -> None:
    assert words in await asked(config_path, text, code=2)


async def test_the_log_says_what_strangers_left_out_and_the_metrics_count_all(daemon: Daemon) -> None:
    for _ in range(60):
        await exchange(daemon, PLAIN, b"", close=True)
    await counted(daemon, Outcome.PROBE, 60)
    writer = daemon.records.connections.writer
    assert writer is not None
    with trio.fail_after(DEADLINE_S):
        while daemon.edge.book.open_count:
            await trio.sleep(0.01)
    assert writer.statistics().left_out >= 20
    assert daemon.edge.book.opened == 60


# -- metrics ---------------------------------------------------------------------------------------------------------


def get(daemon: Daemon, path: str, accept: str = "") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(*daemon.metrics_addresses[0], timeout=10)
    connection.request("GET", path, headers={"Accept": accept} if accept else {})
    answer = connection.getresponse()
    return answer.status, answer.headers["content-type"], answer.read().decode()


async def page(daemon: Daemon, path: str, accept: str = "") -> tuple[int, str, str]:
    return await trio.to_thread.run_sync(get, daemon, path, accept)


OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"


async def test_openmetrics_has_the_id_as_an_example(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await exchange(daemon, PLAIN, call("sat", TOKEN), close=True)
    (found,) = await told(caplog, 1)
    status, kind, text = await page(daemon, "/metrics", OPENMETRICS)
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    examples = [sample.exemplar for sample in families["bentpipe_hold_seconds"].samples if sample.exemplar]
    assert [each.labels for each in examples] == [{"connection_id": found["id"]}]
    counts = {sample.name: sample.value for sample in families["bentpipe_hold_seconds"].samples}
    assert counts["bentpipe_hold_seconds_count"] == 1
    assert "# EOF" not in (await page(daemon, "/metrics"))[2]


async def test_sums_by_satellite_and_org_agree_with_the_records(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for satellite, token in (("sat", TOKEN), ("sat", TOKEN), ("broken", TOKEN), ("stranger", "bp_wrong")):
        await exchange(daemon, PLAIN, call(satellite, token), close=satellite == "sat")
    found = await told(caplog, 4)
    _, _, text = await page(daemon, "/metrics", OPENMETRICS)
    samples = {
        (sample.name, sample.labels.get("satellite") or sample.labels.get("org")): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    of_sat = [each for each in found if each["satellite"] == "acme/sat"]
    assert samples["bentpipe_satellite_connections_total", "acme/sat"] == 2
    assert samples["bentpipe_satellite_up_bytes_total", "acme/sat"] == sum(
        int(str(each["up_bytes"])) for each in of_sat
    )
    assert samples["bentpipe_satellite_refused_total", "acme/broken"] == 1
    assert samples["bentpipe_org_connections_total", "acme"] == 3, "a stranger can ask for any name"
    assert not any(name == "bentpipe_satellite_connections_total" and of == "acme/stranger" for name, of in samples)


async def test_the_daemon_says_whether_it_is_ready_and_why_not(daemon: Daemon) -> None:
    assert await page(daemon, "/healthz") == (200, "text/plain; charset=utf-8", "[+] engine: fine\nfine\n")
    status, _, text = await page(daemon, "/readyz")
    assert (status, text.splitlines()[-1]) == (200, "fine")
    admission = daemon.account_parts.admission
    admission.store_fails = True
    status, _, text = await page(daemon, "/readyz")
    assert (status, "[-] store: the tokens of the store cannot be read" in text) == (503, True)
    assert (await page(daemon, "/readyz?exclude=store"))[0] == 200
    admission.store_fails = False
    async with await trio.open_tcp_stream(*daemon.addresses[PLAIN]) as stream:
        await stream.send_all(call("sat", TOKEN))
        await counted(daemon, Outcome.SPLICED)
        daemon.drain.set()
        status, _, text = await page(daemon, "/readyz")
        assert (status, "[-] draining: the daemon is draining" in text) == (503, True)
        assert (await page(daemon, "/healthz"))[0] == 200


@pytest.mark.skipif(shutil.which("promtool") is None, reason="peer promtool: not installed")
async def test_promtool_accepts_the_metrics(daemon: Daemon) -> None:
    await exchange(daemon, PLAIN, call("sat", TOKEN), close=True)
    _, _, text = await page(daemon, "/metrics")
    checked = await trio.run_process(
        ["promtool", "check", "metrics"], stdin=text.encode(), capture_stdout=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, b"")
