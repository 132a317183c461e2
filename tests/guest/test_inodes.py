"""A build makes empty files until no inode is left. Bytes are free, and BuildKit by itself collects by bytes alone."""

import time

import pytest

from beds.guest.satellite import GuestSatellite
from beds.guest.storms import NO_SPACE, Storm, survive

IDLE_S = 10.0
DEADLINE_S = 1800.0
"""An emulated machine makes 300 files a second on a host with a load of 20, and some thousand on an idle one."""
UNTIL_NO_INODE = Storm(
    "empty files until no inode is left",
    ("files", f"{DEADLINE_S:.0f}", "/", "1000000", "0"),
    NO_SPACE,
    deadline_s=2 * DEADLINE_S,
)
"""ext4 has 131,072 inodes on 1 GiB."""


@pytest.mark.slow
def test_inodes_come_back(satellite_on_ext4: GuestSatellite, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes are free all the time, so only the responder's count of inodes makes BuildKit prune."""
    with satellite_on_ext4.asked() as idle:
        time.sleep(IDLE_S)
    survived = survive(satellite_on_ext4, UNTIL_NO_INODE, 0.0)
    with capsys.disabled():
        print(f"\n{UNTIL_NO_INODE.name}: {survived.words(idle[0])}")
    disk = satellite_on_ext4.status().disk
    assert disk.prunes > 0
    assert disk.last_prune.removed_records > 0
