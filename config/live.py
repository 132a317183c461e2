"""Which key of the configuration changes in a running daemon, and what differs between two configurations. Pure.

`CHANGES` decides about every key of every section; a test walks the model, so that no key can be added without a decision.
A section that may be missing has an entry of its own: what happens if it appears or disappears.
"""

import dataclasses
import enum
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from bentpipe.config.accounts import (
    AccountsSection,
    CertificateSection,
    OidcIssuerSection,
    OidcRuleSection,
    TokenSection,
)
from bentpipe.config.admin import AdminSection
from bentpipe.config.base import Section
from bentpipe.config.ec2_machine import AlternativeSection, MachineTypeEc2Section, SatelliteEc2Section
from bentpipe.config.engine import EngineSection
from bentpipe.config.image import CacheSection, HealthSection, ImageSection
from bentpipe.config.limits import LimitsSection
from bentpipe.config.model import (
    ApiSection,
    BudgetSection,
    Config,
    ControlSection,
    DaemonSection,
    Ec2Section,
    KeepAwakeSection,
    KeyPairSection,
    ListenerSection,
    MachineSection,
    MachineTypeSection,
    ProcessesSection,
    ProcessSection,
    ProxyProtocolSection,
    SatelliteSection,
    SatelliteTlsSection,
    ServerTlsSection,
)
from bentpipe.config.observability import MetricsSection, RecordsSection, TracesSection
from bentpipe.config.prices import PriceSection, PricesSection
from bentpipe.config.rates import Ec2RatesSection, RateSection
from bentpipe.config.registration import RegistrationSection
from bentpipe.config.responder import AbuseSection, ResponderSection
from bentpipe.config.satellite_ca import SatelliteCaSection
from bentpipe.config.store import StoreSection


class Effect(enum.Enum):
    """What a change of a key leads to. The values are the words for the operator."""

    NOW = "at once"
    ASLEEP = "as soon as the satellite sleeps and nobody uses it"
    DRAINED = "new clients are refused; if nobody uses it any more, it is put to sleep"
    RESTART = "needs a restart"


@dataclasses.dataclass(frozen=True, slots=True)
class KeyChange:
    """What a change of a key leads to, and for RESTART the reason why the running daemon cannot do it."""

    effect: Effect
    reason: str = ""


def _of(
    now: str = "", asleep: str = "", restart: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, KeyChange]:
    """`restart` has some keys by the reason that they share, in words for the operator."""
    return {
        **dict.fromkeys(now.split(), KeyChange(Effect.NOW)),
        **dict.fromkeys(asleep.split(), KeyChange(Effect.ASLEEP)),
        **{key: KeyChange(Effect.RESTART, reason) for reason, keys in restart.items() for key in keys.split()},
    }


PARTS_OF_START = "the parts that do this are made at the start"


CHANGES: Mapping[type[Section], Mapping[str, KeyChange]] = {
    Config: _of(
        now="daemon limits engine budget api prices accounts token certificate oidc_issuer oidc_rule satellite "
        "machine_type ec2 metrics records traces admin",
        restart={
            "the sockets of clients are opened at the start": "listener",
            "the command that reloads is connected to its socket": "control",
            "files and tables are open, with what others have written to them": "store",
            "the keeper of local satellites is started with it": "processes",
            PARTS_OF_START: "satellite_ca registration",
        },
    ),
    DaemonSection: _of(
        now="drain_deadline_s greeting admission log_format log_level",
        restart={"the connections that are open belong to the data plane of the start": "data_plane planes"},
    ),
    # What a port speaks. The port itself is opened at the start.
    ListenerSection: _of(
        now="tls proxy_protocol api one_request_per_connection",
        restart={"the sockets of clients are opened at the start": "address systemd defer_accept"},
    ),
    ServerTlsSection: _of(now="more client_ca client_crl satellite_domain"),
    KeyPairSection: _of(now="certificate key"),
    ProxyProtocolSection: _of(now="networks"),
    LimitsSection: _of(
        now="max_connections max_strangers max_connections_per_address max_connections_per_principal "
        "max_connections_per_satellite max_held_per_satellite max_held max_held_per_principal max_launched_per_org "
        "max_registered_per_org held_bytes held_bytes_per_principal stranger_bytes stranger_age_s greeting_deadline_s"
    ),
    EngineSection: _of(
        restart={
            "the engine's threads and pipes are made at the start": "threads splice ktls priority",
            "the engine gets its timeouts and options when it is made": (
                "busy_poll_s notsent_lowat idle_timeout_s half_closed_timeout_s"
            ),
        }
    ),
    BudgetSection: _of(now="max_awake max_awake_per_org org"),
    MetricsSection: _of(now="address per_satellite per_org"),
    RecordsSection: _of(now="keep keep_for_s probes"),
    TracesSection: _of(now="endpoint ratio"),
    AdminSection: _of(now="operators read_without_token hosts path address"),
    ApiSection: _of(now="satellite_address"),
    ControlSection: _of(restart={"the command that reloads is connected to its socket": "path"}),
    StoreSection: _of(
        now="detail_s keep_s",
        restart={
            "the store is open, and has what was written so far": "kind path table region endpoint",
            "other hosts know this one by it, and by these times": "host lease_s host_expiry_s",
        },
    ),
    Ec2Section: _of(
        now="poll_s sweep_s address_age_s rates",
        restart={"the machines that are known are of that cloud and that fleet": "region endpoint fleet"},
    ),
    Ec2RatesSection: _of(now="describe start stop launch terminate"),
    RateSection: _of(now="burst per_s"),
    PricesSection: _of(now="currency minimum_s satellite"),
    PriceSection: _of(now="awake_hour always_hour"),
    AccountsSection: _of(
        now="session_life_s",
        restart={"sessions that the key has signed are in use, here and on other hosts": "signing_key"},
    ),
    SatelliteCaSection: _of(
        now="machines_call machine_life_s token_life_s",
        restart={
            "its socket is opened at the start": "address",
            "machines trust the authority that has signed their certificates": "file",
        },
    ),
    RegistrationSection: _of(now="networks plaintext offline_after_s forget_after_s"),
    TokenSection: _of(now="name hash grants scopes principal expires"),
    CertificateSection: _of(now="name san fingerprint grants scopes"),
    OidcIssuerSection: _of(now="name issuer audience keys_url ca algorithms id_claims"),
    OidcRuleSection: _of(now="name issuer claims patterns grants scopes job_life_s"),
    # The rules of its sleep and of its clients. All else is of the machine, or of how it is reached.
    MachineSection: _of(
        now="platform sleep_mode sleep_after_s min_awake_s wake_deadline_s hold_limit_s retry_after_s "
        "capacity_retry_after_s keep_awake",
        asleep="provider process ec2 image tls responder quiet_connections",
    ),
    SatelliteSection: _of(now="org name"),
    MachineTypeSection: _of(now="size reserve reserve_life_s", asleep="ec2"),
    KeepAwakeSection: _of(now="weekdays window zone"),
    ProcessSection: _of(asleep="command host port environment directory user stop_grace_s"),
    ProcessesSection: _of(restart={"the keeper of local satellites is started with it": "uids directory outlive_s"}),
    SatelliteEc2Section: _of(
        asleep="instance_id launch_template launch_template_version instance_type hibernation port address"
    ),
    MachineTypeEc2Section: _of(asleep="alternative change_type"),
    AlternativeSection: _of(asleep="instance_type zone subnet spot"),
    ImageSection: _of(
        asleep="flavour buildkit runc cpu_percent memory_reserve_bytes memory_buildkit_bytes pids_max "
        "parallelism security_insecure network cni_plugins cni_subnet additional_config io_latency_s "
        "io_max_bytes_per_s responder_port health cache"
    ),
    CacheSection: _of(
        asleep="device file_bytes filesystem keep_percent sources_percent sources_age_s prune_below_percent "
        "prune_until_percent ballast_bytes"
    ),
    HealthSection: _of(asleep="frequency_s timeout_s allowed_failures"),
    SatelliteTlsSection: _of(asleep="issued ca certificate key server_name"),
    ResponderSection: _of(asleep="port interval_s deadline_s trust_builds_s abuse"),
    AbuseSection: _of(asleep="action score"),
}
"""By the section and its field."""

UNSHOWN = frozenset({"hash", "environment", "additional_config"})
"""Fields whose values may be secret, or fill pages."""

SHOWN_CHARS = 60
"""Of one value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One key, or one entry of a list, that is not as it was: where, how, and what that leads to."""

    where: str
    words: str
    change: Effect
    reason: str = ""
    """Why it needs a restart, if it does."""

    @property
    def effect_words(self) -> str:
        """What it leads to, and why."""
        return f"{self.change.value}: {self.reason}" if self.reason else self.change.value

    def __str__(self) -> str:
        return f"{self.where}: {self.words} ({self.effect_words})"


def change_of(kind: type[Section], field: str) -> KeyChange:
    """The decision about a field, from the class that declares it. Raises KeyError if there is none."""
    for each in kind.__mro__:
        if issubclass(each, Section) and (found := CHANGES.get(each, {}).get(field)) is not None:
            return found
    raise KeyError(f"{kind.__name__}.{field}")


def differences(before: Config, after: Config) -> list[Difference]:
    """Everything that differs, in the order of the model."""
    return list(_of_sections("", before, after))


def _of_sections(where: str, before: Section, after: Section) -> Iterator[Difference]:
    kind = type(after)
    for field, info in kind.model_fields.items():
        old, new = getattr(before, field), getattr(after, field)
        if old == new:
            continue
        key = info.alias or field
        place = f"{where}.{key}" if where else key
        change = change_of(kind, field)
        if kind is Config and field in ENTRIES:
            yield from _of_entries(field, entries_by_name(field, old), entries_by_name(field, new))
        elif isinstance(old, Section) and isinstance(new, Section):
            yield from _of_sections(place, old, new)
        else:
            yield Difference(place, _shown(field, old, new), change.effect, change.reason)


def entries_by_name(field: str, sections: Iterable[Section]) -> dict[str, Section]:
    """The entries of a list of the configuration, by their names. Listeners on any free port are numbered."""
    found: dict[str, Section] = {}
    for each in sections:
        name = base = ENTRIES[field](each)
        number = 1
        while name in found:
            number += 1
            name = f"{base} ({number})"
        found[name] = each
    return found


def _of_entries(field: str, before: Mapping[str, Section], after: Mapping[str, Section]) -> Iterator[Difference]:
    change = change_of(Config, field)
    for name in before.keys() - after.keys():
        gone = Effect.DRAINED if field == "satellite" else change.effect
        yield Difference(f"{field} {name}", "removed", gone, change.reason)
    for name, new in after.items():
        old = before.get(name)
        if old is None:
            yield Difference(f"{field} {name}", "added", change.effect, change.reason)
        else:
            yield from _of_sections(f"{field} {name}", old, new)


def listener_name(section: Section) -> str:
    """The port by which a listener is known."""
    assert isinstance(section, ListenerSection)
    if section.address is None:
        return f"systemd:{section.systemd}"
    host, port = section.address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def satellite_name(section: Section) -> str:
    """ORG/NAME."""
    assert isinstance(section, SatelliteSection)
    return f"{section.org}/{section.name}"


def machine_type_name(section: Section) -> str:
    """SIZE PLATFORM."""
    assert isinstance(section, MachineTypeSection)
    return f"{section.size} {section.platform}"


def _name(section: Section) -> str:
    return str(getattr(section, "name", ""))


ENTRIES: Mapping[str, Callable[[Section], str]] = {
    "listener": listener_name,
    "satellite": satellite_name,
    "machine_type": machine_type_name,
    "token": _name,
    "certificate": _name,
    "oidc_issuer": _name,
    "oidc_rule": _name,
}
"""The lists of the configuration whose entries are known by a name, so that their order does not count."""


def _shown(field: str, old: object, new: object) -> str:
    if field in UNSHOWN:
        return "changed"
    if isinstance(old, Section) or isinstance(new, Section):
        return "changed" if old is not None and new is not None else "added" if old is None else "removed"
    words = [_value(each) for each in (old, new)]
    return "changed" if None in words else f"{words[0]} → {words[1]}"


def _value(value: object) -> str | None:
    """A value in a few characters; None if it is not one that is shown."""
    if value is None:
        return "none"
    if isinstance(value, tuple) and all(isinstance(each, str | int | float) for each in value):
        value = ", ".join(map(str, value))
    if not isinstance(value, str | int | float | Path):
        return None
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
