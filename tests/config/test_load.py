"""The loader: the sample is right, and every mistake is told at once, with its path."""

from pathlib import Path

import pytest

from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.config.model import StoreSection, TokenSection

SAMPLE = Path(__file__).parents[2] / "config" / "sample.toml"


def test_the_sample_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tls.key").touch()
    (tmp_path / "tls.pem").touch()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "bentpipe.toml"
    path.write_text(SAMPLE.read_text().replace("/etc/bentpipe", str(tmp_path)))
    config = load_config(path)
    assert config.satellite[0].sleep_after_s == 1800
    assert config.listener[0].address == ("", 8372)
    assert config.store.ledger_path({"STATE_DIRECTORY": "/elsewhere"}) == Path("/var/lib/bentpipe/ledger.sqlite")
    assert config.prices is not None
    assert config.prices.of("acme", "builder").awake_hour == 0.39
    assert config.prices.of("other", "builder").awake_hour == 0.77


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
        ({"kind": "dynamodb", "table": "bentpipe", "path": "x"}, "no use for path"),
        ({"kind": "sqlite", "table": "bentpipe", "lease": "3s"}, "no use for lease, table"),
        ({"kind": "none", "host": "edge"}, "no use for host"),
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
