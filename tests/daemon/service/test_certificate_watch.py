"""The certificates of a running daemon, looked at again and again: real files, real certificates."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from beds.issued import DAY, NOW, Issued
from bentpipe.config.load import load_config
from bentpipe.daemon.service import certificate_watch
from bentpipe.daemon.service.certificate_watch import CertificateWatch
from bentpipe.daemon.service.preflight_tls import look_at_all

CONFIG = """
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
certificate = "{folder}/tls.pem"
key = "{folder}/tls.key"
[[satellite]]
org = "acme"
name = "ci"
[satellite.process]
command = ["true", "{{port}}"]
"""
DEADLINE_S = 20.0


def put(folder: Path, issued: Issued) -> None:
    (folder / "tls.pem").write_bytes(issued.pem())
    (folder / "tls.key").write_bytes(issued.key_pem())


def watch_of(folder: Path, issued: Issued) -> CertificateWatch:
    put(folder, issued)
    config = folder / "bentpipe.toml"
    config.write_text(CONFIG.format(folder=folder))
    loaded = load_config(config)
    return CertificateWatch(lambda: loaded, look_at_all, str)


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not true():
            await trio.sleep(0.01)


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        str(getattr(record, "fields", {}).get("reason")) for record in caplog.records if record.msg == "certificate"
    ]


async def test_a_renewed_certificate_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = Issued("edge", begins=NOW - 80 * DAY, ends=NOW + 10 * DAY), Issued("edge")
    watch = watch_of(tmp_path, old)
    file = str(tmp_path / "tls.pem")
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run_watch)
            await until(lambda: dict(watch.ends) == {file: old.certificate.not_valid_after_utc.timestamp()})
            await until(lambda: len(reasons(caplog)) == 1)
            put(tmp_path, new)
            watch.ask()
            await until(lambda: dict(watch.ends) == {file: new.certificate.not_valid_after_utc.timestamp()})
            put(tmp_path, old)
            watch.ask()
            await until(lambda: watch.ends[file] == old.certificate.not_valid_after_utc.timestamp())
            nursery.cancel_scope.cancel()
    assert "expires on" in reasons(caplog)[0]
    assert len(reasons(caplog)) == 1, "the same concern is logged once a day"


async def test_files_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = watch_of(tmp_path, Issued("edge"))
    (tmp_path / "tls.pem").unlink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run_watch)
        await until(lambda: len(reasons(caplog)) == 1)
        nursery.cancel_scope.cancel()
    assert "No such file" in reasons(caplog)[0]
    assert watch.ends == {}


async def test_a_disk_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO without a writer: open(2) does not return."""
    monkeypatch.setattr(certificate_watch, "READ_DEADLINE_S", 0.1)
    watch = watch_of(tmp_path, Issued("edge"))
    fifo = tmp_path / "tls.pem"
    fifo.unlink()
    os.mkfifo(fifo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run_watch)
        await until(lambda: any(record.msg == "certificates cannot be looked at" for record in caplog.records))
        nursery.cancel_scope.cancel()
    for _ in range(2):  # the thread reads the file for its end and for its concerns
        with fifo.open("wb"):
            pass
