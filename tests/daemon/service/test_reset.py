"""What only people can mend is tried again when they say so: the daemon's answer to SIGHUP."""

import hashlib
from pathlib import Path

import pytest
import trio

from bentpipe.config.model import Config
from bentpipe.daemon.errors import SatelliteUnusable
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.serve import serve

KEY = SatelliteKey("acme", "s")
DEADLINE_S = 20.0


async def test_a_program_that_is_missing_and_then_is_there(tmp_path: Path) -> None:
    program = tmp_path / "satellite"
    config = Config.model_validate(
        {
            "listener": [{"address": "127.0.0.1:0"}],
            "token": [{"name": "t", "hash": f"sha256:{hashlib.sha256(b't').hexdigest()}", "grants": ["acme/*"]}],
            "satellite": [
                {
                    "org": KEY.org,
                    "name": KEY.name,
                    "retry_after": 0,
                    "process": {"command": [str(program), "{port}"], "stop_grace": 1},
                }
            ],
        }
    )
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve, config)
        satellite = daemon.fleet.get(KEY)

        async def refused() -> None:
            with pytest.raises(SatelliteUnusable, match="there is no program at"):
                async with satellite.lease():
                    raise AssertionError("unreachable")

        await refused()
        program.write_text(
            "#!/usr/bin/env python3\n"
            "import socket, sys\n"
            "with socket.create_server(('127.0.0.1', int(sys.argv[1]))) as server:\n"
            "    while True:\n"
            "        server.accept()[0].close()\n"
        )
        program.chmod(0o755)
        await refused()
        daemon.reload()
        with trio.fail_after(DEADLINE_S):
            while not daemon.current.reloads:
                await trio.sleep(0.01)
        assert satellite.state is SatelliteState.SLEEP
        with trio.fail_after(DEADLINE_S):
            async with satellite.lease() as lease:
                assert lease.address.port
        daemon.drain.set()
