"""Machines with certificates of the daemon's own authority, reached by a data plane that asks nobody."""

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trio

from beds.hosts.enrolling_cloud import DEADLINE_S, MINE, THEIRS, EnrollingCloud, call, enrolling_cloud
from beds.peers.clients import CallError
from beds.ports import free_port
from bentpipe.daemon.edge import dial as dialling
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki import authority_keeper
from bentpipe.daemon.pki.authority import rotated
from bentpipe.daemon.pki.authority_file import keep_authority, read_authority
from bentpipe.daemon.service.serve import Daemon


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EnrollingCloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    monkeypatch.setattr(dialling, "DIAL_DEADLINE_S", 2.0)
    monkeypatch.setattr(authority_keeper, "LOOK_S", 0.2)
    with enrolling_cloud(tmp_path) as cloud:
        cloud.port = free_port()
        cloud.daemon = f'data_plane = "process"\nadmission = "snapshot"\nplanes = "{tmp_path / "planes"}"'
        yield cloud


def admitted(daemon: Daemon) -> int:
    assert daemon.edge.gatekeeper is not None
    return daemon.edge.gatekeeper.admitted


async def until_admitted(daemon: Daemon, key: SatelliteKey) -> None:
    """Call until the data plane has admitted a client of the satellite."""
    before = admitted(daemon)
    with trio.fail_after(DEADLINE_S):
        while admitted(daemon) == before:
            with contextlib.suppress(CallError):
                assert await call(daemon, key, timeout_s=20.0) == b"hello"


async def test_gates_lead_to_machines_that_prove_themselves(bed: EnrollingCloud) -> None:
    """Another tenant's machine at the address gets no byte. Gates follow addresses, and a rotated authority."""
    async with bed.serving() as daemon:
        for key in (MINE, THEIRS):
            await until_admitted(daemon, key)
        await bed.exchange_addresses(daemon)
        before = admitted(daemon)
        for key in (MINE, THEIRS):
            with pytest.raises(CallError) as caught:
                await call(daemon, key, b"secret", timeout_s=20.0)
            assert caught.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert admitted(daemon) == before, "a client was joined with a machine that did not prove itself"
        await bed.exchange_addresses(daemon)
        for key in (MINE, THEIRS):
            await until_admitted(daemon, key)
        authority = bed.folder / authority_keeper.AUTHORITY_NAME
        first = daemon.edge.satellite_tls[MINE]
        keep_authority(authority, rotated(read_authority(authority), "test", datetime.datetime.now(datetime.UTC)))
        with trio.fail_after(DEADLINE_S):
            while daemon.edge.satellite_tls[MINE] == first:
                await trio.sleep(0.05)
        for key in (MINE, THEIRS):
            await until_admitted(daemon, key)
