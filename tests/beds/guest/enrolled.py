"""The certificates of a machine that has enrolled, and of the daemon that it serves: made by the daemon's own authority."""

import dataclasses
import datetime
import json
from pathlib import Path

import grpc

from beds.tls_pairs import Party, daemon, machine
from bentpipe.daemon.image.files import SECRET, ImageFile, MachineImage
from bentpipe.daemon.image.places import AUTHORITY, IDENTITY, TLS_FOLDER
from bentpipe.daemon.image.render import enrolment_file
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import MachineName, new_authority

ISSUED = """[satellite.tls]
issued = true
[satellite_ca]
address = "127.0.0.1:0"
machines_call = "127.0.0.1:1"
"""
"""Certificates of the daemon's own authority. The guest has its first one already, and reaches no daemon for the next."""
LIFE_S = 86_400.0
RENEWED_AT = json.dumps({"at": 4_102_444_800})
"""In the year 2100."""


@dataclasses.dataclass(frozen=True, slots=True)
class DaemonTls:
    """What the daemon shows to a machine, and as what it knows the machine."""

    machine_name: str
    edge: Party

    def arguments(self) -> tuple[str, ...]:
        """Of buildctl."""
        trusted = self.edge.file.with_suffix(".ca")
        trusted.write_text(self.edge.trusted)
        shown = str(self.edge.file)
        names = ("--tlsservername", self.machine_name, "--tlscacert", str(trusted))
        return (*names, "--tlscert", shown, "--tlskey", shown)

    def channel(self, target: str) -> grpc.Channel:
        """To the responder."""
        pem = self.edge.file.read_bytes()
        credentials = grpc.ssl_channel_credentials(self.edge.trusted.encode(), pem, pem)
        return grpc.secure_channel(target, credentials, [("grpc.ssl_target_name_override", self.machine_name)])


def enrolled(image: MachineImage, folder: Path) -> tuple[MachineImage, DaemonTls]:
    """Add the files that a machine has after its enrolment. `folder` is for the daemon's own certificate."""
    now = datetime.datetime.now(datetime.UTC)
    authority = new_authority("test", now)
    name = MachineName("test", SatelliteKey("acme", "guest"), "1" * 64)
    own = machine(folder, authority, name, now, LIFE_S)
    files = (
        enrolment_file("{}"),
        ImageFile(IDENTITY, own.file.read_text(), SECRET),
        ImageFile(AUTHORITY, own.trusted),
        ImageFile(f"{TLS_FOLDER}/renewal.json", RENEWED_AT),
    )
    return dataclasses.replace(image, own=files), DaemonTls(name.dns, daemon(folder, authority, now, LIFE_S))
