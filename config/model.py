"""The configuration as frozen, validated values. No I/O beyond what pydantic checks; `load` reads the file.

Every section says what it means to an operator; units are in the names. Unknown keys are errors.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, model_validator

from bentpipe.config.accounts import (
    AccountsSection,
    CertificateSection,
    OidcIssuerSection,
    OidcRuleSection,
    TokenSection,
)
from bentpipe.config.admin import SOCKET_PATH_BYTES, AdminSection
from bentpipe.config.base import HOST_PORT_PATTERN, DurationS, ListenAddress, Name, Section
from bentpipe.config.ec2_machine import MachineTypeEc2Section, SatelliteEc2Section
from bentpipe.config.engine import EngineSection
from bentpipe.config.image import ImageSection
from bentpipe.config.limits import LimitsSection
from bentpipe.config.observability import MetricsSection, RecordsSection, TracesSection
from bentpipe.config.prices import PricesSection
from bentpipe.config.rates import Ec2RatesSection
from bentpipe.config.registration import RegistrationSection
from bentpipe.config.responder import ResponderSection
from bentpipe.config.satellite_ca import SatelliteCaSection
from bentpipe.config.store import DAY_S, StoreSection
from bentpipe.config.units import (
    Network,
    parse_hours,
    parse_networks,
    parse_weekdays,
)

DOMAIN_PATTERN = r"^[a-z0-9-]+(\.[a-z0-9-]+)*$"
"""In lower case, since names are compared in lower case (RFC 4343)."""


class DaemonSection(Section):
    """The daemon as a whole."""

    drain_deadline_s: DurationS = Field(default=30.0, ge=0, alias="drain_deadline")
    data_plane: Literal["auto", "inside", "process"] = "auto"
    """Where connections live: in the daemon's own process, or in another one, `bentpipe dataplane`, which outlives it.
    auto: in another one wherever that can be; `bentpipe check` says what that means here."""
    planes: Path | None = None
    """The folder of the data planes' control sockets; by default one that each daemon of this file finds."""
    greeting: Literal["auto", "python"] = "auto"
    """auto: a client's first frames are read in C if the engine was built with nghttp2. Otherwise Python reads them."""
    admission: Literal["auto", "asked", "snapshot"] = "auto"
    """asked: the control plane admits every client. snapshot: data planes bring clients to awake satellites themselves.
    auto: snapshot, if connections live in a process of their own."""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _admission_fits(self) -> Self:
        if self.admission == "snapshot" and self.data_plane == "inside":
            raise ValueError('admission = "snapshot" needs a process for connections, and data_plane is "inside"')
        return self

    @property
    def by_snapshots(self) -> bool:
        """Whether data planes may admit clients, if there are any."""
        return self.admission != "asked"


class KeyPairSection(Section):
    """A certificate and its key.

    Both files are PEM; the certificate file holds the chain, leaf first. Read again at each reload.
    """

    certificate: Path
    key: Path


class ServerTlsSection(KeyPairSection):
    """TLS of a listener."""

    more: tuple[KeyPairSection, ...] = ()
    """Shown to clients that ask for a name in them (SNI). All other clients get the listener's own certificate."""
    client_ca: Path | None = None
    """If set, a client must show a certificate signed by one of these."""
    client_crl: Path | None = None
    """PEM file with the CRLs of all authorities in the clients' chains. Clients whose certificates are revoked are refused.
    So is every client once a CRL's nextUpdate has passed. Read again at each reload."""
    satellite_domain: str | None = Field(default=None, pattern=DOMAIN_PATTERN)
    """If set, the TLS server name `NAME.ORG.<satellite_domain>` asks for a satellite, as the metadata do."""

    @model_validator(mode="after")
    def _has_authorities(self) -> Self:
        if self.client_crl is not None and self.client_ca is None:
            raise ValueError("client_crl is for client certificates: give client_ca too")
        return self


class ProxyProtocolSection(Section):
    """Load balancers in front of a listener that give their clients' addresses by the PROXY protocol, version 1 or 2."""

    networks: Annotated[tuple[Network, ...], BeforeValidator(parse_networks)] = Field(alias="from")
    """Peers that must send the header, and are believed. All other peers must not send it, and count by their own
    address."""


class ListenerSection(Section):
    """One port for clients: an address, or sockets from systemd."""

    address: ListenAddress | None = None
    systemd: str | None = None
    """FileDescriptorName= of the socket unit; every socket of that name is served."""
    tls: ServerTlsSection | None = None
    """Without it the listener speaks plaintext h2c (prior knowledge)."""
    proxy_protocol: ProxyProtocolSection | None = None
    defer_accept: bool = True
    """Whether the kernel keeps a client that says nothing for its first second (tcp(7), TCP_DEFER_ACCEPT). The client speaks
    first at every listener, so the daemon gets the connection together with the first bytes."""
    api: bool = False
    """Whether the control API answers here, beside the satellites: gRPC, and HTTP/1.1. With `tls` unless the network is
    trusted: tokens are sent to it."""
    one_request_per_connection: bool = False
    """For frontends that send several clients' requests on one connection and have no setting against that. Each request
    then has a connection of its own: a GOAWAY after the first request says so, and further requests are refused."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.address is None) == (self.systemd is None):
            raise ValueError("give exactly one of address and systemd")
        if self.api and self.one_request_per_connection:
            raise ValueError("give api or one_request_per_connection, not both: an API connection makes many requests")
        return self


class ApiSection(Section):
    """The control API, on the listeners that have `api = true`."""

    satellite_address: str | None = Field(default=None, pattern=HOST_PORT_PATTERN)
    """HOST:PORT of the listener for builds, as clients reach it; the API tells it to them. By default it is the address at
    which the client called the API."""


SOCKET_NAME = "control.sock"


class ControlSection(Section):
    """The socket by which `bentpipe cut` speaks to the running daemon. It is for root and the daemon's own user."""

    path: Path | None = None
    """By default `control.sock` in systemd's RuntimeDirectory; without that there is no socket."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and len(os.fsencode(self.path)) > SOCKET_PATH_BYTES:
            raise ValueError(f"path has over {SOCKET_PATH_BYTES} bytes, too many for a socket")
        return self

    def socket_path(self, environment: Mapping[str, str] = os.environ) -> Path | None:
        """The socket's path; None if there is no socket."""
        # systemd.exec(5): a list of folders, ours has one.
        directory = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        return self.path or (Path(directory) / SOCKET_NAME if directory else None)


class ProcessSection(Section):
    """A satellite that is a local process."""

    command: tuple[str, ...] = Field(min_length=1)
    """argv; `{port}` and `{host}` in any argument are replaced. No shell."""
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """0: a free port is chosen at every start."""
    environment: dict[str, str] = Field(default_factory=dict)
    directory: Path | None = None
    """Its working directory; by default its private folder, or the daemon's own directory if it has none."""
    user: Literal["own", "daemon"] = "own"
    """"own": one of [processes] uids, if that is given. "daemon": the daemon's own user, whose keys and store it can read;
    for a command that needs that user's rights, such as a BuildKit that runs as root."""
    stop_grace_s: DurationS = Field(default=10.0, ge=0, alias="stop_grace")
    """Time between SIGTERM and SIGKILL."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        ipaddress.ip_address(self.host)
        if not self.port and not any("{port}" in argument for argument in self.command):
            raise ValueError("with port 0 the command must take its port: use {port} in an argument")
        return self


class ProcessesSection(Section):
    """All satellites that are local processes. Their parent is the keeper, which outlives the daemon."""

    uids: str | None = Field(default=None, pattern=r"^[0-9]+-[0-9]+$")
    """FIRST-LAST: each satellite gets a user of its own from this range, which nothing else on this host may use, and a
    private folder. So a build cannot read the daemon's keys and store, nor another satellite's files. It needs root. Without
    it they run as the daemon's user. The unit bentpipe-keeper.service has a range of its own."""
    directory: Path = Path("/var/lib/bentpipe-satellites")
    """Holds the private folders, one for each satellite."""
    outlive_s: DurationS = Field(default=3600.0, ge=0, alias="outlive")
    """How long satellites go on after a daemon that was killed and has not been started again."""


class SatelliteTlsSection(Section):
    """TLS from the daemon to a satellite."""

    issued: bool = False
    """The daemon's own authority gives each machine that it launches a certificate: see [satellite_ca]. The daemon then
    accepts that machine and no other, whatever its address."""
    ca: Path | None = None
    """Instead of `issued`: the authority that signs the satellites' certificates."""
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    """Name to verify; by default the satellite's host."""

    @model_validator(mode="after")
    def _one_authority(self) -> Self:
        if self.issued == (self.ca is not None):
            raise ValueError("give exactly one of ca and issued = true")
        if self.issued and (self.certificate or self.key or self.server_name):
            raise ValueError(
                "with issued = true the daemon has its own certificate and names: remove certificate, key, server_name"
            )
        return self


class KeepAwakeSection(Section):
    """Hours in which a satellite does not sleep, and at whose beginning it is woken."""

    weekdays: Annotated[frozenset[int], BeforeValidator(parse_weekdays)] = Field(alias="days")
    """0 is Monday; in the file "mon-fri", "sat,sun". A span over midnight belongs to the day on which it begins."""
    window: Annotated[tuple[int, int], BeforeValidator(parse_hours)] = Field(alias="hours")
    """Minutes past midnight; in the file "08:00-18:00", or "22:00-06:00" for a night."""
    zone: str = "UTC"
    """As in the IANA time zone database: "Europe/Vienna"."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError(f"{self.zone!r} is not a time zone that this system knows") from exc
        return self

    @property
    def time_zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.zone)


class MachineSection(Section):
    """What a satellite's machine is, and how it sleeps: what [[satellite]] and [[machine_type]] have in common."""

    TABLE: ClassVar[str] = "satellite"

    provider: Literal["process", "ec2"] = "process"
    process: ProcessSection | None = None
    ec2: SatelliteEc2Section | None = None
    image: ImageSection | None = None
    """What runs on its machine, given as user data when the daemon launches it. Without it that is the template's matter."""
    tls: SatelliteTlsSection | None = None
    """Without it the daemon speaks plaintext to the satellite."""
    responder: ResponderSection | None = None
    """Without it nothing is known of the machine but what its provider and its port tell."""
    platform: Literal["linux/amd64", "linux/arm64"] = "linux/amd64"
    """What the control API says of it, as Docker spells it; nothing else depends on it."""
    sleep_mode: Literal["hibernate", "stop"] = "hibernate"
    sleep_after_s: DurationS = Field(default=1800.0, gt=0, alias="sleep_after")
    min_awake_s: DurationS = Field(default=150.0, ge=0, alias="min_awake")
    """EC2 refuses to hibernate a machine that has just launched; a process may use 0."""
    wake_deadline_s: DurationS = Field(default=300.0, gt=0, alias="wake_deadline")
    """Time from the first waiter to operational. If it passes, the wake has failed."""
    hold_limit_s: DurationS = Field(default=600.0, gt=0, alias="hold_limit")
    """The longest time that one client is held, whatever the wake does."""
    retry_after_s: DurationS = Field(default=5.0, ge=0, alias="retry_after")
    """How long a failed wake is remembered before the next attempt. Clients that come meanwhile get its reason. It doubles
    with every failure in a row, to 5 minutes at most. SIGHUP forgets the failure at once."""
    capacity_retry_after_s: DurationS = Field(default=180.0, ge=0, alias="capacity_retry_after")
    """The same after a lack of capacity. Karpenter, too, leaves an exhausted offering alone for 3 minutes."""
    keep_awake: tuple[KeepAwakeSection, ...] = ()
    quiet_connections: Literal["keep", "end"] | None = None
    """Whether open connections that move no more than keepalives and health checks keep it awake, or are ended so that it
    can sleep. By default "end" if there is a responder, which tells whether a build runs, and "keep" otherwise. "end" can
    cut a call that is silent for longer than `sleep_after`, unless it is a build that the responder counts."""

    @property
    def launches(self) -> bool:
        """Whether the machine is created if a client wants it and it does not exist."""
        return self.ec2 is not None and self.ec2.launch_template is not None

    @property
    def has_issued_tls(self) -> bool:
        """Whether the daemon's own authority gives its machine a certificate."""
        return self.tls is not None and self.tls.issued

    @property
    def ends_quiet(self) -> bool:
        """Whether connections that move no more than keepalives are ended."""
        if self.quiet_connections is None:
            return self.responder is not None
        return self.quiet_connections == "end"

    @model_validator(mode="after")
    def _provider_section(self) -> Self:
        for name, section in (("process", self.process), ("ec2", self.ec2)):
            if self.provider == name and section is None:
                raise ValueError(f"provider {name!r} needs a [{self.TABLE}.{name}] section")
            if self.provider != name and section is not None:
                raise ValueError(f"provider {self.provider!r} does not use a [{self.TABLE}.{name}] section; remove it")
        if self.image is not None and self.responder is not None and self.responder.port != self.image.responder_port:
            raise ValueError(
                f"[{self.TABLE}.responder] port is {self.responder.port}, and [{self.TABLE}.image] responder_port is "
                f"{self.image.responder_port}: give both the same port"
            )
        if self.image is not None and not self.launches:
            raise ValueError(
                f"[{self.TABLE}.image] is for machines that the daemon launches: give a launch_template in "
                f"[{self.TABLE}.ec2], or remove the section. A process runs on this host, within the host's own limits"
            )
        return self


class SatelliteSection(MachineSection):
    """One satellite."""

    org: Name
    name: Name


MOST_RESERVE = 20
"""Machines of one type in the reserve. Each costs its disk, and one satellite more can be launched at once with it."""


class MachineTypeSection(MachineSection):
    """The machines of the satellites that LaunchSatellite makes. A type is named by its size and its platform."""

    TABLE: ClassVar[str] = "machine_type"

    size: Name
    """As `earthly sat launch --size` gives it."""
    ec2: MachineTypeEc2Section | None = None
    reserve: int = Field(default=0, ge=0, le=MOST_RESERVE)
    """So many machines are launched ahead and put to sleep, without a tenant. A new satellite gets one of them and wakes in
    seconds. They cost their disks, and a few minutes awake each."""
    reserve_life_s: DurationS = Field(default=30 * DAY_S, ge=DAY_S / 24, le=50 * DAY_S, alias="reserve_life")
    """After this time a machine of the reserve is replaced by a new one. EC2 keeps a hibernated machine for 60 days."""

    @model_validator(mode="after")
    def _has_a_reserve(self) -> Self:
        if self.reserve and self.provider != "ec2":
            raise ValueError(
                "reserve needs provider 'ec2': a process is started as quickly as one that is kept ready, so remove reserve"
            )
        if self.reserve and self.ec2 is not None and self.sleep_mode == "hibernate" and not self.ec2.hibernation:
            raise ValueError(
                'a reserve that hibernates needs hibernation = true in [machine_type.ec2]; with sleep_mode = "stop" its '
                "machines are stopped"
            )
        return self

    @model_validator(mode="after")
    def _makes_machines(self) -> Self:
        if self.provider == "ec2" and not self.launches:
            raise ValueError("a machine type of provider 'ec2' needs a launch_template in [machine_type.ec2]")
        if self.process is not None and self.process.port:
            raise ValueError("port must be 0 in [machine_type.process], since many satellites have the type")
        return self

    def satellite(self, org: str, name: str) -> SatelliteSection:
        """The section of a satellite of this type."""
        return SatelliteSection.model_construct(
            self.model_fields_set - {"size", "reserve", "reserve_life_s"} | {"org", "name"},
            org=org,
            name=name,
            **{field: getattr(self, field) for field in MachineSection.model_fields},
        )


class BudgetSection(Section):
    """How many satellites may be awake at once. To wake one more, the one idle for longest is put to sleep. If all are in
    use, the clients of further satellites wait in order."""

    max_awake: int | None = Field(default=None, ge=1)
    """In all; without it there is no limit."""
    max_awake_per_org: int | None = Field(default=None, ge=1)
    org: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Limits of single orgs, instead of `max_awake_per_org`."""

    def of(self, org: str) -> int | None:
        """The org's limit."""
        return self.org.get(org, self.max_awake_per_org)

    @property
    def limits_anything(self) -> bool:
        """Whether there is any limit."""
        return self.max_awake is not None or self.max_awake_per_org is not None or bool(self.org)


class Ec2Section(Section):
    """The provider `ec2`. boto3 finds the credentials (environment, files, instance role)."""

    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$")
    """By default as boto3 finds it."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """An endpoint instead of the region's own (a VPC endpoint, an emulator)."""
    fleet: Name = "default"
    """Value of the tag `bentpipe:fleet` on our instances. Daemons that share satellites share it."""
    poll_s: DurationS = Field(default=1.5, gt=0, alias="poll")
    """Time between looks at machines that are starting or stopping. One call looks at all of them."""
    sweep_s: DurationS = Field(default=60.0, gt=0, alias="sweep")
    """Time between looks at all other machines. If somebody else changes one, this may go unnoticed for so long."""
    address_age_s: DurationS = Field(default=5.0, gt=0, alias="address_age")
    """A client is let in only if the last look at the instance is not older than this. EC2 gives a terminated instance's
    private address to another instance. Between a look that says "running" and the other instance's open port lie the rest
    of the first one's life, its shutdown and the other's boot. By what we have seen, these take longer than this."""
    rates: Ec2RatesSection = Ec2RatesSection()


class Config(Section):
    """The whole file."""

    daemon: DaemonSection = Field(default_factory=DaemonSection)
    listener: tuple[ListenerSection, ...] = Field(min_length=1)
    limits: LimitsSection = Field(default_factory=LimitsSection)
    engine: EngineSection = Field(default_factory=EngineSection)
    budget: BudgetSection = Field(default_factory=BudgetSection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    records: RecordsSection = Field(default_factory=RecordsSection)
    traces: TracesSection = Field(default_factory=TracesSection)
    admin: AdminSection | None = None
    api: ApiSection = Field(default_factory=ApiSection)
    control: ControlSection = Field(default_factory=ControlSection)
    store: StoreSection = Field(default_factory=StoreSection)
    processes: ProcessesSection = Field(default_factory=ProcessesSection)
    ec2: Ec2Section = Field(default_factory=Ec2Section)
    prices: PricesSection | None = None
    accounts: AccountsSection = Field(default_factory=AccountsSection)
    satellite_ca: SatelliteCaSection | None = None
    token: tuple[TokenSection, ...] = ()
    certificate: tuple[CertificateSection, ...] = ()
    oidc_issuer: tuple[OidcIssuerSection, ...] = ()
    oidc_rule: tuple[OidcRuleSection, ...] = ()
    satellite: tuple[SatelliteSection, ...] = ()
    machine_type: tuple[MachineTypeSection, ...] = ()
    registration: RegistrationSection | None = None

    @property
    def makes_satellites(self) -> bool:
        """Whether clients may launch or register satellites, so that any org may have some."""
        return bool(self.machine_type) or self.registration is not None

    @property
    def machines(self) -> tuple[MachineSection, ...]:
        """The machines of all satellites that there are or may be."""
        return (*self.satellite, *self.machine_type)
