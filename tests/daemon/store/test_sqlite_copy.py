"""Backups, restores and looks at the store's file: beside a daemon that writes, with damaged files, and on a full disk."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from beds.contracts.ledger import ALWAYS, A, check_laws
from beds.programs import program
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.ledger.contract import Stamp
from bentpipe.daemon.ledger.sqlite import SqliteLedger
from bentpipe.daemon.ledger.sqlite_check import find_breaks
from bentpipe.daemon.registry.sqlite import SqliteRegistry
from bentpipe.daemon.service.cli import main
from bentpipe.daemon.store.schema import MIGRATIONS
from bentpipe.daemon.store.sqlite_copy import back_up, holder, look_into, require_sound, restore

PAGE_BYTES = 4096


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def writer(store: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes into the store all the time."""
    store.parent.mkdir()
    with subprocess.Popen([*program("stores.ledger_child"), store], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


async def fill(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger.begin([A], Stamp.now())
    await ledger.end(Stamp.now())
    await ledger.aclose()


async def begin_often(ledger: SqliteLedger) -> None:
    """Writes some pages each time."""
    for _ in range(1000):
        await ledger.begin([A], Stamp.now())


async def intervals_of(path: Path) -> int:
    reader = SqliteLedger(path, read_only=True)
    found = await reader.intervals(*ALWAYS)
    await reader.aclose()
    check_laws(found, Stamp.now().wall_us)
    return len(found)


def run(folder: Path, *arguments: str | Path) -> Result:
    config = folder / "bentpipe.toml"
    config.write_text(
        f'[store]\npath = "{folder / "state" / "ledger.sqlite"}"\n[[listener]]\naddress = "127.0.0.1:0"\n'
    )
    words = [str(each) for each in arguments]
    return CliRunner().invoke(main, ["store", words[0], "--config", str(config), *words[1:]])


async def test_a_backup_beside_a_writer_is_one_moment(
    store: Path, writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    for number in range(5):
        copy = tmp_path / f"copy-{number}"
        assert back_up(store, copy) == len(MIGRATIONS)
        assert copy.stat().st_mode & 0o777 == 0o600
        assert require_sound(copy) == len(MIGRATIONS)
        assert await intervals_of(copy) > 0
    assert writer.poll() is None
    # One file each: none needs a -wal or -shm beside it.
    assert sorted(path.name for path in tmp_path.glob("*copy-*")) == [f"copy-{number}" for number in range(5)]


def test_a_backup_overwrites_nothing(store: Path, writer: subprocess.Popen[str], tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.symlink_to("nowhere")
    with pytest.raises(StoreError, match="is there already"):
        back_up(store, target)
    assert target.is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_restore_is_refused_while_a_process_has_the_store_open(
    store: Path, writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    back_up(store, tmp_path / "copy")
    assert holder(store) == writer.pid
    before = sorted(store.parent.iterdir())
    with pytest.raises(StoreError, match=f"has it open .process {writer.pid}.: stop it first"):
        restore(tmp_path / "copy", store)
    assert sorted(store.parent.iterdir()) == before
    end(writer)
    assert holder(store) is None


async def test_a_restore_brings_back_what_the_backup_has_and_keeps_what_was_there(
    store: Path, writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    back_up(store, copy)
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    end(writer)
    identity = store.stat().st_ino
    later = await intervals_of(store)
    kept = restore(copy, store)
    assert kept is not None
    assert await intervals_of(store) == await intervals_of(copy) < later
    assert await intervals_of(kept) == later
    assert store.stat().st_ino == identity  # a daemon that has seen the file takes another one for a mistake
    registry = SqliteRegistry(store)
    await registry.tokens()
    await registry.aclose()


async def test_a_restore_of_a_store_that_is_gone_or_damaged(store: Path, tmp_path: Path) -> None:
    await fill(tmp_path / "other" / "ledger.sqlite")
    copy = tmp_path / "copy"
    back_up(tmp_path / "other" / "ledger.sqlite", copy)
    assert restore(copy, store) is None
    assert await intervals_of(store) == await intervals_of(copy)
    store.write_bytes(b"not a database" * 1000)
    kept = restore(copy, store)
    assert kept is not None
    assert kept.read_bytes().startswith(b"not a database")
    assert await intervals_of(store) == await intervals_of(copy)


async def test_a_backup_that_is_not_sound_is_not_restored(store: Path, tmp_path: Path) -> None:
    await fill(store)
    before = store.read_bytes()
    newer, foreign, torn, empty = (tmp_path / name for name in ("newer", "foreign", "torn", "empty"))
    for path in (newer, torn):
        back_up(store, path)
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE mine (id)")
    connection.close()
    content = bytearray(torn.read_bytes())
    content[PAGE_BYTES * 2 : PAGE_BYTES * 4] = os.urandom(PAGE_BYTES * 2)
    torn.write_bytes(content)
    empty.touch()
    for path, words in (
        (newer, "this bentpipe knows only"),
        (foreign, "of something else"),
        (torn, "malformed|is damaged"),
        (empty, "is not a store of bentpipe"),
        (tmp_path / "none", "unable to open"),
    ):
        with pytest.raises(StoreError, match=words):
            restore(path, store)
        assert store.read_bytes() == before
        assert list(store.parent.glob("*before*")) == []


async def test_a_restore_that_dies_half_way_leaves_the_old_content(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store)
    copy = tmp_path / "copy"
    back_up(store, copy)
    before = await intervals_of(store)
    killed = subprocess.run(
        [
            *("python3", "-c"),
            "import os, sqlite3, sys\n"
            "source, target = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])\n"
            "source.backup(target, pages=2, progress=lambda *_: os._exit(9))",
            *(copy, store),
        ],
        check=False,
    )
    assert killed.returncode == 9
    assert await intervals_of(store) == before


async def test_a_chain_with_a_hole_is_told(store: Path) -> None:
    await fill(store)
    ledger = SqliteLedger(store)
    await ledger.begin([], Stamp.now())  # A is not configured any more: a second interval
    await ledger.aclose()
    assert look_into(store, find_breaks) == []
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE interval SET from_us = from_us + 1 WHERE id = 2")
    connection.close()
    [told] = look_into(store, find_breaks)
    assert told.startswith(f"{A}: an interval begins at ")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_a_full_disk_spoils_nothing(tmp_path: Path) -> None:
    """The daemon's writes fail, with words that name it; when there is room again, the ledger goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        store = disk / "ledger.sqlite"
        ledger = SqliteLedger(store)
        await ledger.begin([A], Stamp.now())
        (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free // PAGE_BYTES * PAGE_BYTES))
        with pytest.raises(StoreError, match=r"full|disk I/O error"):
            await begin_often(ledger)
        with pytest.raises(StoreError, match=r"full|No space"):
            back_up(store, disk / "copy")
        assert not (disk / "copy").exists()
        (disk / "filler").unlink()
        await ledger.begin([A], Stamp.now())
        await ledger.end(Stamp.now())
        await ledger.aclose()
        assert require_sound(store) == len(MIGRATIONS)
        assert await intervals_of(store) > 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


async def test_the_commands(store: Path, tmp_path: Path) -> None:
    await fill(store)
    copy = tmp_path / "copy"
    done = run(tmp_path, "backup", copy)
    assert (done.exit_code, done.output.startswith(f"{copy}: backed up and verified")) == (0, True), done.output
    assert run(tmp_path, "backup", copy).exit_code == 2
    assert run(tmp_path, "verify").output == f"{store}: sound, version {len(MIGRATIONS)} of the store\n"
    done = run(tmp_path, "restore", copy)
    assert done.exit_code == 0
    assert "what was there before" in done.output
    copy.write_bytes(b"not a database" * 1000)
    done = run(tmp_path, "verify", copy)
    assert (done.exit_code, done.output) == (1, f"{copy}: file is not a database\n")
    assert run(tmp_path, "verify", tmp_path / "none").exit_code == 2


def test_a_table_of_dynamodb_is_left_to_aws(tmp_path: Path) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text(
        '[store]\nkind = "dynamodb"\ntable = "fleet"\nregion = "eu-central-1"\n[[listener]]\naddress = ":0"\n'
    )
    for command in (("backup", "x"), ("restore", "x"), ("verify",)):
        done = CliRunner().invoke(main, ["store", command[0], "--config", str(config), *command[1:]])
        assert done.exit_code in {1, 2}
        assert "update-continuous-backups --table-name fleet" in done.output
