"""A build makes empty files until few inodes or none are left. Bytes are free, and BuildKit by itself counts only bytes."""

import time

import pytest

from beds.guest.satellite import GuestSatellite
from beds.guest.storms import NO_SPACE, Storm, survive

IDLE_S = 10.0
DEADLINE_S = 3600.0
"""An emulated machine makes 300 files a second on a host with a load of 20, and some thousand on an idle one."""
ENDLESS = f"{2 * DEADLINE_S:.0f}"
MILLION = 1_000_000
A_MILLION = Storm(
    "a million empty files on XFS",
    ("files", ENDLESS, "/", str(MILLION), "0"),
    None,
    says=f"{MILLION} files",
    deadline_s=DEADLINE_S,
    clean_deadline_s=DEADLINE_S,
)
"""They are 512 MB of 1 GiB, and 95 % of the inodes: XFS, as it is made for a cache, has 1,048,576."""
UNTIL_NO_INODE = Storm(
    "empty files until no inode is left, on ext4",
    ("files", ENDLESS, "/", str(MILLION), "0"),
    NO_SPACE,
    deadline_s=DEADLINE_S,
)
"""ext4 has 131,072 inodes on 1 GiB."""

pytestmark = pytest.mark.slow


def survives(satellite: GuestSatellite, storm: Storm, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes are free all the time, so only the responder's count of inodes makes BuildKit prune."""
    with satellite.asked() as idle:
        time.sleep(IDLE_S)
    survived = survive(satellite, storm, 0.0)
    with capsys.disabled():
        print(f"\n{storm.name}: {survived.words(idle[0])}")
    disk = satellite.status().disk
    assert disk.prunes > 0
    assert disk.last_prune.removed_records > 0


def test_inodes_come_back(satellite_on_ext4: GuestSatellite, capsys: pytest.CaptureFixture[str]) -> None:
    survives(satellite_on_ext4, UNTIL_NO_INODE, capsys)


def test_a_million_files_go_again(satellite: GuestSatellite, capsys: pytest.CaptureFixture[str]) -> None:
    survives(satellite, A_MILLION, capsys)
