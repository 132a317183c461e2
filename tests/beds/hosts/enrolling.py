"""The satellites' authority of one host with its port, without clients and clouds; and a machine's user data for it."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from bentpipe.config.load import load_config
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.listener import bind
from bentpipe.daemon.ids import launch_token
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.enrolment import Bootstrap
from bentpipe.daemon.service.satellite_ca import SatelliteCa, make_keeper, make_satellite_ca
from bentpipe.daemon.service.stores import open_stores
from bentpipe.native.engine import Ktls

MINE, THEIRS = SatelliteKey("acme", "one"), SatelliteKey("rival", "one")
SATELLITE = """
[[satellite]]
org = "{key.org}"
name = "{key.name}"
provider = "ec2"
[satellite.ec2]
launch_template = "builder"
[satellite.tls]
issued = true
"""
CONFIG = """
[store]
path = "{folder}/ledger.sqlite"
[satellite_ca]
address = "127.0.0.1:{port}"
machines_call = "127.0.0.1:{port}"
machine_life = "{life}"
[ec2]
region = "eu-central-1"
fleet = "test"
[[listener]]
address = "127.0.0.1:0"
"""


@dataclasses.dataclass(frozen=True, slots=True)
class EnrolmentBed:
    """`table` is the edge's."""

    ca: SatelliteCa
    table: dict[SatelliteKey, SatelliteTls]
    port: int

    async def launch(self, key: SatelliteKey = MINE, generation: int = 1) -> Bootstrap:
        """What the user data of a launch have."""
        launch = launch_token(key, generation=generation)
        return await self.ca.enrolments.expect(key, launch, generation)


@contextlib.asynccontextmanager
async def enrolment_bed(folder: Path, port: int, *, life: str = "90d") -> AsyncIterator[EnrolmentBed]:
    """Serve until the end of the block. Hosts with the same folder have the same store and authority."""
    path = folder / f"edge-{port}.toml"
    satellites = "".join(SATELLITE.format(key=key) for key in (MINE, THEIRS))
    path.write_text(CONFIG.format(folder=folder, port=port, life=life) + satellites)
    config = load_config(path)
    keeper = make_keeper(config)
    assert keeper is not None
    table: dict[SatelliteKey, SatelliteTls] = {}
    ca = make_satellite_ca(config, keeper, open_stores(config.store), table, Ktls.NONE, bind("127.0.0.1", port))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ca.server.run_enrolment)
        yield EnrolmentBed(ca, table, port)
        nursery.cancel_scope.cancel()
