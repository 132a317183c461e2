"""The user data of a launch: a cloud-config with the satellite's settings, and what one machine alone has. Pure.

cloud-init writes the files in its network stage. `bootcmd` of the machine's first boot queues one unit before, which starts
the satellite as soon as that stage is done. cloud-init's last stage (runcmd) would come after the network is online and, on
Debian and Ubuntu, after multi-user.target. On later boots the units are enabled, and nothing waits for cloud-init.
User data must never hold a secret that outlives the launch: every process that reaches the metadata service can read them.
"""

import gzip
import json

from bentpipe.daemon.errors import ProviderPermanent
from bentpipe.daemon.image.files import ImageFile

LIMIT_BYTES = 16 << 10
"""EC2's, before it encodes them in base 64."""
FIRST_START = "bentpipe-first-start"
NETWORK_STAGE = "cloud-init.service cloud-init-network.service"
"""The unit of the stage that writes files, as it is called before and since cloud-init 24.3."""


class UserDataTooLarge(ProviderPermanent):
    """EC2 would refuse the launch."""


def cloud_config(files: tuple[ImageFile, ...], start: str = "") -> str:
    """Write the cloud-config that gives a machine these files, and then runs the shell's commands `start`, once."""
    lines = [
        "#cloud-config",
        "# Made by bentpipe. Nothing is installed or upgraded at a boot: that would take time before the first build.",
        "package_update: false",
        "package_upgrade: false",
    ]
    if start:
        words = ("cloud-init-per", "instance", FIRST_START, "systemd-run", "--no-block", f"--unit={FIRST_START}")
        options = ("--property=Type=oneshot", "--property=DefaultDependencies=no", f"--property=After={NETWORK_STAGE}")
        quoted = ", ".join(_quoted(each) for each in (*words, *options, "/bin/sh", "-c", start))
        lines += ["bootcmd:", f"  - [{quoted}]"]
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


def own_config(file: ImageFile) -> bytes:
    """Write the user data that give one file to a machine that has booted before.

    cloud-init writes files at the first boot only, so daemon/responder/enrol.py reads them from the metadata service. It has
    no parser of YAML: after the first line this is JSON, which is YAML too (YAML 1.2.2, section 1.3).
    """
    written = {"path": file.path, "permissions": f"{file.mode:04o}", "content": file.content}
    return packed("#cloud-config\n" + json.dumps({"write_files": [written]}) + "\n")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def packed(text: str) -> bytes:
    """Return a cloud-config as EC2 takes it, compressed if it must be. The same text gives the same bytes.

    Raises UserDataTooLarge.
    """
    data = text.encode()
    if len(data) > LIMIT_BYTES:
        data = gzip.compress(data, compresslevel=9, mtime=0)
    if len(data) > LIMIT_BYTES:
        raise UserDataTooLarge(
            f"the user data have {len(data)} bytes after compression, and EC2 takes {LIMIT_BYTES}: make additional_config, "
            "or the authority's chain of certificates, shorter",
            peer_hint="the machine's user data are too large for EC2",
        )
    return data
