"""Every id that is joined from parts: machine ids, tags, tokens, table keys, folder and file names. Pure.

Each is injective: different parts never give the same id. If two satellites shared an id, one tenant would get the machine,
row or process of the other. Names of orgs, satellites and fleets may hold dots, dashes and underscores, but neither slash
nor tilde. So a slash joins them; if another character joins them, it is replaced inside the parts. If an id must be short,
it is a hash over parts whose ends are marked.

Every new id is made here, and is listed in `JOINED`. `tests/daemon/test_ids.py` walks the list, and fails if another module
joins parts.
"""

import hashlib
import json
from collections.abc import Callable
from urllib.parse import quote

from bentpipe.daemon.model import RESERVE_ORG, MachineId, SatelliteKey

MACHINE_DOMAIN = "machine.bentpipe.internal"
NAME_DIGITS = 40
"""Hex digits of a machine's DNS label: 160 bits, and with the letter before them fewer than a label's 63 octets."""


def satellite_tag(key: SatelliteKey) -> str:
    """Value of the tag `bentpipe:satellite`, and a satellite's name in the ledger and in logs: ORG/NAME."""
    return str(key)


def machine_id_of(key: SatelliteKey) -> MachineId:
    """The id by which providers know the satellite's machine: ORG.NAME, with "~" for each dot inside either.

    Names without dots keep the id that they had before dots were replaced.
    """
    return MachineId(".".join(part.replace(".", "~") for part in (key.org, key.name)))


def folder_name(machine_id: MachineId) -> str:
    """A machine's cgroup, or the name of its log file: without a slash, and otherwise like the id if possible."""
    return quote(machine_id, safe="/").replace("/", ":")  # quote turns a colon in the id into %3A


def row_key(key: SatelliteKey) -> str:
    """DynamoDB's partition of a satellite's row."""
    return f"ROW#{key}"


def open_interval_key(key: SatelliteKey) -> str:
    """DynamoDB's sort key of a satellite's open interval, in one host's ledger."""
    return f"OPEN#{key}"


def launch_token(key: SatelliteKey, *, generation: int, period: int | None = None) -> str:
    """64 hex digits for one machine of a satellite. They are the same however often it is launched.

    `generation` counts the satellite's machines, in the registry or (then with a `period` of the wall clock) in one
    daemon's life.
    """
    return _digest("launch", key.org, key.name, generation, period)


def client_token(fleet: str, satellite: str, token: str, alternative: str = "") -> str:
    """EC2's ClientToken of a launch, 64 hex digits (EC2 takes 64 ASCII characters, and scopes them by account and region).

    If EC2 knows the token, it answers with the instance that the token has made. So the fleet is part of it: two fleets of
    one account may have satellites of the same name. `satellite` is the tag's value, `token` is the launch's own. Each
    alternative of a launch has a token of its own, since EC2 refuses one token with other parameters.
    """
    return _digest("ec2", fleet, satellite, token, *([alternative] if alternative else ()))


def machine_dns_name(fleet: str, key: SatelliteKey, launch: str) -> str:
    """The DNS name in the certificate of one machine of a satellite; `launch` is its launch token.

    A name holds characters that a DNS label may not have, so the label is a hash. The domain is for private use only (ICANN
    reserves .internal), and nobody resolves it.
    """
    return f"m{_digest('machine', fleet, key.org, key.name, launch)[:NAME_DIGITS]}.{MACHINE_DOMAIN}"


def machine_uri(fleet: str, key: SatelliteKey, launch: str) -> str:
    """The same as a URI that people can read."""
    return f"bentpipe://{fleet}/{key.org}/{key.name}/{launch}"


def reserve_place(size: str, platform: str, number: int) -> str:
    """One place of a machine type's reserve: DynamoDB's sort key, and its name in the log."""
    return f"{size}/{platform}/{number}"


def reserve_tag(size: str, platform: str, spare: str) -> str:
    """Value of the tag `bentpipe:reserve` of a machine that no satellite has yet; `spare` is its id, 32 hex digits."""
    return f"{size}/{platform}/{spare}"


def parts_of_reserve_tag(value: str) -> tuple[str, str, str]:
    """The size, the platform and the id of a machine by its tag; whatever others have written there is taken apart too."""
    kind, _, spare = value.rpartition("/")
    size, _, platform = kind.partition("/")
    return size, platform, spare


def reserve_key(size: str, platform: str, number: int) -> SatelliteKey:
    """A place of the reserve as the ledger knows it."""
    return SatelliteKey(RESERVE_ORG, "~".join((size, *platform.split("/"), str(number))))


def _digest(*parts: str | int | None) -> str:
    """SHA-256 of the parts as JSON, where "a b", "c" is not "a", "b c", nor 1 "1"."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


JOINED: dict[str, Callable[[str, SatelliteKey, int, int | None], tuple[object, str]]] = {
    "satellite tag": lambda fleet, key, generation, period: (key, satellite_tag(key)),
    "machine id": lambda fleet, key, generation, period: (key, machine_id_of(key)),
    "folder": lambda fleet, key, generation, period: (key, folder_name(machine_id_of(key))),
    "row": lambda fleet, key, generation, period: (key, row_key(key)),
    "open interval": lambda fleet, key, generation, period: (key, open_interval_key(key)),
    "launch token": lambda fleet, key, generation, period: (
        (key, generation, period),
        launch_token(key, generation=generation, period=period),
    ),
    "client token": lambda fleet, key, generation, period: (
        (fleet, key, generation, period),
        client_token(fleet, satellite_tag(key), launch_token(key, generation=generation, period=period)),
    ),
    "machine name": lambda fleet, key, generation, period: (
        (fleet, key, generation, period),
        machine_dns_name(fleet, key, launch_token(key, generation=generation, period=period)),
    ),
    "machine uri": lambda fleet, key, generation, period: (
        (fleet, key, generation, period),
        machine_uri(fleet, key, launch_token(key, generation=generation, period=period)),
    ),
    "client token of an alternative": lambda fleet, key, generation, period: (
        (fleet, key, generation, period),
        client_token(fleet, satellite_tag(key), launch_token(key, generation=generation, period=period), fleet),
    ),
    "reserve place": lambda fleet, key, generation, period: (
        (key.name, generation),
        reserve_place(key.name, "linux/amd64", generation),
    ),
    "reserve tag": lambda fleet, key, generation, period: (
        (key.name, generation),
        reserve_tag(key.name, "linux/amd64", f"{generation:032x}"),
    ),
    "reserve in the ledger": lambda fleet, key, generation, period: (
        (key.name, generation),
        str(reserve_key(key.name, "linux/amd64", generation)),
    ),
}
"""By kind: a function of a fleet, a satellite, a generation and a period. It returns those for which the id stands, and the
id."""
