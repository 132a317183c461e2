"""BuildKit's configuration for moby's daemon and for the Earthly fork, which have different keys. Pure.

Neither refuses a key that it does not know, so the tests ask a real buildkitd what it has made of it. Sizes are marks that
programs/cache.py replaces on the machine, by the size of the cache. It must never use a percentage: BuildKit would count it
of the disk that its databases are on.
"""

import json

from bentpipe.config.image import CacheSection, ImageSection
from bentpipe.daemon.image.places import AUTHORITY, CNI, IDENTITY
from bentpipe.daemon.image.programs.cache import KEEP_MARK, SOURCES_MARK
from bentpipe.daemon.image.programs.settings import ROOT, RUNTIME, SOCKET

SOURCES = ("type==source.local", "type==source.git.checkout")
"""What a client sends again, or can be checked out again."""
SIZE_KEYS = {"moby": "maxUsedSpace", "earthly": "keepBytes"}
"""The key of a policy for the bytes that may be used. The fork is older than `maxUsedSpace`, and ignores it."""


def buildkit_configuration(section: ImageSection, port: int, *, tls: bool) -> str:
    """Return buildkitd.toml, with the marks of programs/cache.py for sizes. `port` is the one that the daemon dials."""
    lines = [f'root = "{ROOT}"']
    if section.security_insecure:
        lines += ["# Such a step is root on this machine.", 'insecure-entitlements = ["security.insecure"]']
    lines += ["", "[grpc]", f'address = ["unix://{SOCKET}", "tcp://:{port}"]']
    if tls:
        lines += ["[grpc.tls]", f'cert = "{IDENTITY}"', f'key = "{IDENTITY}"', f'ca = "{AUTHORITY}"']
    if section.flavour == "earthly":
        lines += ["", *_health(section)]
    lines += ["", "[worker.containerd]", "enabled = false", "", *_worker(section)]
    for policy in _policies(section.cache, SIZE_KEYS[section.flavour]):
        lines += ["", "[[worker.oci.gcpolicy]]", *policy]
    if section.additional_config:
        lines += ["", "# From additional_config.", section.additional_config.rstrip()]
    return "\n".join(lines) + "\n"


def _worker(section: ImageSection) -> list[str]:
    lines = [
        "[worker.oci]",
        "enabled = true",
        'snapshotter = "overlayfs"',
        "# Becomes runc, after it has changed how a step is protected and killed.",
        f'binary = "{RUNTIME}"',
        f'networkMode = "{section.network}"',
        "gc = true",
    ]
    if section.network == "cni":
        lines += [f'cniConfigPath = "{CNI}"', f'cniBinaryPath = "{section.cni_plugins}"']
    if section.parallelism:
        lines.append(f"max-parallelism = {section.parallelism}")
    return lines


def cni_configuration(section: ImageSection) -> str:
    """Return the list of CNI plug-ins for a step's network (CNI specification 0.4.0): a bridge, its addresses translated."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": section.cni_subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "builds0", "isGateway": True, "ipMasq": True, "ipam": addresses}
    return json.dumps({"cniVersion": "0.4.0", "name": "bentpipe", "plugins": [bridge]}, indent=1) + "\n"


def _policies(cache: CacheSection, size: str) -> list[list[str]]:
    """The policies in the order in which BuildKit applies them.

    Only the first has a keepDuration: with it in the last, ancestors of young records could never be collected.
    """
    filters = ", ".join(f'"{each}"' for each in SOURCES)
    return [
        [f"filters = [{filters}]", f'keepDuration = "{cache.sources_age_s:.0f}s"', f'{size} = "{SOURCES_MARK}"'],
        [f'{size} = "{KEEP_MARK}"'],
        ["all = true", f'{size} = "{KEEP_MARK}"'],
    ]


def _health(section: ImageSection) -> list[str]:
    health = section.health
    return [
        "[health]",
        f'frequency = "{health.frequency_s:.0f}s"',
        f'timeout = "{health.timeout_s:.0f}s"',
        f"allowedFailures = {health.allowed_failures}",
    ]
