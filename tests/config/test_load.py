"""The loader: the sample is right, and every mistake is told at once, with its path."""

from pathlib import Path

import pytest

from bentpipe.config.accounts import TokenSection
from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.config.model import KeepAwakeSection
from bentpipe.config.store import StoreSection
from bentpipe.config.units import parse_hours, parse_weekdays

SAMPLE = Path(__file__).parents[2] / "config" / "sample.toml"


def test_the_sample_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tls.key").touch()
    (tmp_path / "tls.pem").touch()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "bentpipe.toml"
    path.write_text(SAMPLE.read_text().replace("/etc/bentpipe", str(tmp_path)))
    config = load_config(path)
    assert config.satellite[0].sleep_after_s == 1800
    assert config.limits.held_bytes == 256 << 20
    assert config.metrics.address == ("127.0.0.1", 9100)
    assert config.listener[0].address == ("", 8372)
    assert config.store.ledger_path({"STATE_DIRECTORY": "/elsewhere"}) == Path("/var/lib/bentpipe/ledger.sqlite")
    assert config.prices is not None
    assert config.prices.of("acme", "builder").awake_hour == 0.39
    assert config.prices.of("other", "builder").awake_hour == 0.77
    assert (config.budget.max_awake, config.budget.of("acme"), config.budget.of("other")) == (20, 10, 5)
    (hours,) = config.satellite[0].keep_awake
    assert (sorted(hours.weekdays), hours.window, hours.time_zone.key) == (
        [0, 1, 2, 3, 4],
        (480, 1080),
        "Europe/Vienna",
    )
    assert [each.launches for each in config.satellite] == [False, True]


def test_every_mistake_about_being_awake_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text("""
[[listener]]
address = ":1"
[limits]
max_held = 0
[budget]
max_awake = 0
max_awake_per_org = "many"
[budget.org]
acme = 0
[[satellite]]
org = "acme"
name = "a"
[satellite.process]
command = ["true", "{port}"]
[[satellite.keep_awake]]
days = "monday"
hours = "8-18"
[[satellite.keep_awake]]
days = "sat,fri-mon"
hours = "00:00-24:01"
zone = "Europe/Nowhere"
[[satellite.keep_awake]]
days = "mon"
hours = "09:00-12:60"
""")
    with pytest.raises(ConfigErrors) as error:
        load_config(path)
    hours = "satellite[0].keep_awake"
    assert [problem.where for problem in error.value.problems] == [
        "budget.max_awake",
        "budget.max_awake_per_org",
        "budget.org.acme",
        "limits.max_held",
        f"{hours}[0].days",
        f"{hours}[0].hours",
        f"{hours}[1].hours",
        f"{hours}[2].hours",
    ]
    path.write_text("""
[[listener]]
address = ":1"
[budget.org]
acne = 1
[[satellite]]
org = "acme"
name = "a"
[satellite.process]
command = ["true", "{port}"]
""")
    with pytest.raises(ConfigErrors, match=r"budget\.org\.acne: an org that has no satellite"):
        load_config(path)


def test_a_time_zone_that_the_system_does_not_know() -> None:
    with pytest.raises(ValueError, match="not a time zone"):
        KeepAwakeSection.model_validate({"days": "mon", "hours": "08:00-18:00", "zone": "Europe/Nowhere"})


@pytest.mark.parametrize(
    ("text", "days"),
    [("mon-fri", {0, 1, 2, 3, 4}), ("sat, sun", {5, 6}), ("fri-mon,wed", {4, 5, 6, 0, 2}), ("tue", {1})],
)
def test_weekdays(text: str, days: set[int]) -> None:
    assert parse_weekdays(text) == days


@pytest.mark.parametrize("text", ["", "mon-", "-fri", "mon-fri-sat", "Mon", "mo", 1])
def test_what_is_not_a_list_of_weekdays(text: object) -> None:
    with pytest.raises(ValueError, match="weekdays"):
        parse_weekdays(text)


@pytest.mark.parametrize(
    ("text", "minutes"), [("08:00-18:30", (480, 1110)), ("22:00-06:00", (1320, 360)), ("00:00-24:00", (0, 1440))]
)
def test_hours(text: str, minutes: tuple[int, int]) -> None:
    assert parse_hours(text) == minutes


@pytest.mark.parametrize("text", ["", "8:00-18:00", "08:00", "24:00-25:00", "08:60-09:00", "08:00-24:01", 8])
def test_what_is_not_a_span_of_hours(text: object) -> None:
    with pytest.raises(ValueError, match="hours"):
        parse_hours(text)


def test_every_mistake_about_ec2_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    satellite = '[[satellite]]\norg = "acme"\nprovider = "ec2"\n'
    path.write_text(f"""
[[listener]]
address = ":1"
[ec2]
endpoint = "nowhere"
poll = 0
[ec2.rates]
start = {{ burst = 0, per_s = -1 }}
{satellite}
name = "a"
[satellite.ec2]
instance_id = "lt-1"
port = 0
address = "both"
launch_template_version = "newest"
{satellite}
name = "b"
{satellite}
name = "c"
[satellite.ec2]
instance_id = "i-0123456789abcdef0"
launch_template = "builder"
{satellite}
name = "d"
[satellite.process]
command = ["true", "{{port}}"]
[satellite.ec2]
""")
    with pytest.raises(ConfigErrors) as error:
        load_config(path)
    assert {problem.where for problem in error.value.problems} == {
        "ec2.endpoint",
        "ec2.poll",
        "ec2.rates.start.burst",
        "ec2.rates.start.per_s",
        "satellite[0].ec2.instance_id",
        "satellite[0].ec2.port",
        "satellite[0].ec2.address",
        "satellite[0].ec2.launch_template_version",
        "satellite[1]",
        "satellite[2].ec2",
        "satellite[3]",
    }


def test_an_instance_is_one_satellite(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    one = (
        '[[satellite]]\norg = "acme"\nname = "{}"\nprovider = "ec2"\n'
        '[satellite.ec2]\ninstance_id = "i-0123456789abcdef0"\n'
    )
    path.write_text('[[listener]]\naddress = ":1"\n' + one.format("a") + one.format("b"))
    with pytest.raises(ConfigErrors, match=r"satellite\[1\]\.ec2\.instance_id: the same as satellite\[0\]"):
        load_config(path)


def test_certificates_that_only_case_tells_apart_are_one(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    one = '[[certificate]]\nname = "{}"\nsan = "{}"\ngrants = ["acme/a"]\n'
    both = one.format("a", "DNS:Dev.example") + one.format("b", "DNS:dev.example")
    path.write_text(f'[[listener]]\naddress = ":1"\n{both}')
    with pytest.raises(ConfigErrors, match=r"certificate\[1\]: the same as certificate\[0\]"):
        load_config(path)


def test_the_ledger_is_kept_where_the_service_manager_says_or_not_at_all() -> None:
    assert StoreSection().ledger_path({"STATE_DIRECTORY": "/var/lib/bentpipe"}) == Path(
        "/var/lib/bentpipe/ledger.sqlite"
    )
    assert StoreSection().ledger_path({}) is None
    assert StoreSection(kind="none", path=Path("x")).ledger_path({"STATE_DIRECTORY": "/var/lib/bentpipe"}) is None


def test_a_store_that_is_shared() -> None:
    section = StoreSection.model_validate({"kind": "dynamodb", "table": "bentpipe", "lease": "1s", "host_expiry": "3s"})
    assert (section.lease_s, section.host_expiry_s) == (1, 3)
    assert section.ledger_path({"STATE_DIRECTORY": "/var/lib/bentpipe"}) is None


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "dynamodb"}, "needs a table"),
        ({"kind": "dynamodb", "table": "bentpipe", "path": "x"}, "does not use path"),
        ({"kind": "sqlite", "table": "bentpipe", "lease": "3s"}, "does not use lease, table"),
        ({"kind": "none", "host": "edge"}, "does not use host"),
        ({"kind": "dynamodb", "table": "a b"}, "pattern"),
        ({"kind": "dynamodb", "table": "bentpipe", "lease": 0}, "greater than"),
    ],
)
def test_a_store_with_keys_of_another_kind(section: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StoreSection.model_validate(section)


def test_who_only_reads_needs_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text(SAMPLE.read_text().replace("/etc/bentpipe", str(tmp_path / "absent")))
    assert load_config(path, check_files=False).satellite
    with pytest.raises(ConfigErrors, match="cannot read"):
        load_config(path)


def test_every_mistake_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text("""
[daemon]
drain_deadline = "soon"
bogus = 1
[[listener]]
address = "nowhere"
[store]
kind = "stone"
[prices]
awake_hour = -1
[[satellite]]
org = "acme"
name = "bad name"
[satellite.process]
command = ["true"]
port = 99999
""")
    with pytest.raises(ConfigErrors) as error:
        load_config(path)
    found = {problem.where for problem in error.value.problems}
    assert found == {
        "daemon.drain_deadline",
        "daemon.bogus",
        "listener[0].address",
        "satellite[0].name",
        "store.kind",
        "prices.awake_hour",
        "satellite[0].process.port",
    }
    assert len(error.value.problems) == len(found)


def test_prices_are_for_satellites_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text("""
[[listener]]
address = ":1"
[prices.satellite."acme/*"]
awake_hour = 1
[[satellite]]
org = "other"
name = "a"
[satellite.process]
command = ["true", "{port}"]
""")
    with pytest.raises(ConfigErrors) as error:
        load_config(path)
    assert [problem.where for problem in error.value.problems] == ["prices.satellite.acme/*"]


def test_certificates(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    certificate = '[[certificate]]\nname = "{}"\n{}\ngrants = ["acme/*"]\n'
    shown = 'san = "DNS:a"', 'san = "DNS:a"', 'san = "CN:a"', 'san = "DNS:a"\nfingerprint = "sha256:00"', ""
    path.write_text(
        '[[listener]]\naddress = ":0"\n' + "".join(certificate.format(f"c{i}", s) for i, s in enumerate(shown))
    )
    with pytest.raises(ConfigErrors) as error:
        load_config(path)
    assert {problem.where for problem in error.value.problems} == {f"certificate[{i}]" for i in (2, 3, 4)}
    path.write_text(
        '[[listener]]\naddress = ":0"\n' + "".join(certificate.format(f"c{i}", s) for i, s in enumerate(shown[:2]))
    )
    with pytest.raises(ConfigErrors) as error:
        load_config(path)
    assert {problem.where for problem in error.value.problems} == {
        "certificate",
        "certificate[0].grants",
        "certificate[1]",
        "certificate[1].grants",
    }


@pytest.mark.parametrize("grant", ["acme/x", "acme/*", "acme/b*", "acme/b-*"])
def test_grants_that_are_some(grant: str) -> None:
    assert TokenSection(name="ci", hash="sha256:" + "0" * 64, grants=(grant,)).grants == (grant,)


@pytest.mark.parametrize("grant", ["acme", "acme/", "/x", "acme/b-", "acme/*x", "acme/**", "acme/-*", "acme/a/b"])
def test_grants_that_are_none(grant: str) -> None:
    with pytest.raises(ValueError, match="expected ORG/NAME"):
        TokenSection(name="ci", hash="sha256:" + "0" * 64, grants=(grant,))


def proxied(tmp_path: Path, networks: str) -> tuple[str, ...]:
    path = tmp_path / "bentpipe.toml"
    path.write_text(f'[[listener]]\naddress = ":1"\nproxy_protocol = {networks}\n')
    section = load_config(path).listener[0].proxy_protocol
    assert section is not None
    return tuple(map(str, section.networks))


def test_the_proxies_before_a_listener(tmp_path: Path) -> None:
    assert proxied(tmp_path, '{ from = ["10.0.0.0/8", "fd00::/8", "192.0.2.1", "2001:db8::1"] }') == (
        "10.0.0.0/8",
        "fd00::/8",
        "192.0.2.1/32",
        "2001:db8::1/128",
    )


@pytest.mark.parametrize(
    ("networks", "where", "words"),
    [
        ("{}", "listener[0].proxy_protocol.from", "missing"),
        ("{ from = [] }", "listener[0].proxy_protocol.from", "expected"),
        ('{ from = "10.0.0.0/8" }', "listener[0].proxy_protocol.from", "not a valid list of networks"),
        ('{ from = ["10.0.0.1/8"] }', "listener[0].proxy_protocol.from", "has host bits set"),
        ('{ from = ["lb.example.com"] }', "listener[0].proxy_protocol.from", "not a valid network"),
        ("{ from = [10] }", "listener[0].proxy_protocol.from", "not a valid network"),
        ('{ from = ["::ffff:10.0.0.0/104"] }', "listener[0].proxy_protocol.from", "write the IPv4 network"),
        ('{ from = ["10.0.0.0/8"], version = 2 }', "listener[0].proxy_protocol.version", "unknown key"),
        ("true", "listener[0].proxy_protocol", ""),
    ],
)
def test_mistakes_about_proxies(tmp_path: Path, networks: str, where: str, words: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        proxied(tmp_path, networks)
    [problem] = error.value.problems
    assert problem.where == where
    assert words in problem.message
