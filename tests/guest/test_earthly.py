"""A satellite with Earthly's fork of BuildKit. It tells no client that a step ran out of memory, so our runtime does."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.guest.image import guest_image
from beds.guest.machine import Guest
from beds.guest.satellite import (
    BUILDKIT_PORT,
    RESPONDER_PORT,
    VOLUME,
    GuestSatellite,
    Programs,
    rendered_image,
)
from beds.guest.storms import Storm, survive
from beds.peers.builds import Missing
from beds.peers.earthly_buildkit import earthly_buildkitd
from bentpipe.daemon.image.programs.runtime import OUT_OF_MEMORY

pytestmark = pytest.mark.slow

FORK = Programs("earthly", "/opt/earthly")
UNPACK_DEADLINE_S = 240.0
UNPACK = """mkdir -p $1; gzip -dc >$1/buildkitd; chmod 755 $1/buildkitd
cp /usr/local/bin/buildctl $1/; printf '#!/bin/sh\\n' >$1/earth_debugger; chmod 755 $1/earth_debugger"""
"""The debugger is for people at a terminal: that there is one is enough here."""


@pytest.fixture(scope="module")
def fork() -> Iterator[GuestSatellite]:
    try:
        packed = gzip.compress(Path(earthly_buildkitd()).read_bytes(), compresslevel=1)
        image = guest_image()
        guest = Guest(image, [BUILDKIT_PORT, RESPONDER_PORT])
    except Missing as exc:
        pytest.skip(str(exc))
    # The fork's gRPC answers no ALPN, which a newer client insists on.
    with pytest.MonkeyPatch.context() as patch, guest:
        patch.setitem(os.environ, "GRPC_ENFORCE_ALPN_ENABLED", "false")
        guest.run(UNPACK, FORK.folder, stdin=packed, deadline_s=UNPACK_DEADLINE_S)
        satellite = GuestSatellite(guest, image)
        satellite.install(rendered_image(VOLUME, FORK))
        yield satellite


@pytest.mark.parametrize("parent", [None, "system.slice"])
def test_a_step_without_memory_is_told(fork: GuestSatellite, parent: str | None) -> None:
    storm = Storm("anonymous memory", ("memory", "200"), OUT_OF_MEMORY.strip(), parent=parent)
    survive(fork, storm, 0.0)
    assert "exit code: 137" in fork.build(*storm.arguments, parent=parent).progress
