"""The user data of a launch: a cloud-config with what differs between machines. Pure.

The units are in the machine image (AMI) and start by themselves. cloud-init only writes files, in its network stage. Its
last stage (runcmd) runs after the network is online and, on Debian and Ubuntu, after multi-user.target. User data must never
hold a secret that outlives the launch: every process that reaches the metadata service can read them.
"""

import gzip

from bentpipe.daemon.errors import ProviderPermanent
from bentpipe.daemon.image.files import ImageFile

LIMIT_BYTES = 16 << 10
"""EC2's, before it encodes them in base 64."""


class UserDataTooLarge(ProviderPermanent):
    """EC2 would refuse the launch."""


def cloud_config(files: tuple[ImageFile, ...]) -> str:
    """Write the cloud-config that gives a machine these files."""
    lines = [
        "#cloud-config",
        "# Made by bentpipe. Nothing is installed or upgraded at a boot: that would take time before the first build.",
        "package_update: false",
        "package_upgrade: false",
    ]
    if files:
        lines.append("write_files:")
    for file in files:
        lines += [
            f"  - path: {_quoted(file.path)}",
            f"    permissions: '{file.mode:04o}'",
            "    content: |2",
            *(f"      {line}".rstrip() for line in file.content.splitlines()),
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def packed(text: str) -> bytes:
    """Compress a cloud-config as cloud-init reads it: the same text gives the same bytes. Raises UserDataTooLarge."""
    data = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    if len(data) > LIMIT_BYTES:
        raise UserDataTooLarge(
            f"the user data have {len(data)} bytes after compression, and EC2 takes {LIMIT_BYTES}: a chain of certificates "
            "in them is too long",
            peer_hint="the machine's user data are too large for EC2",
        )
    return data
