"""Mistakes in a configuration, one by one: each is told with its place and what to do."""

from pathlib import Path

import pytest

from bentpipe.config.limits import LimitsSection
from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.config.model import ControlSection
from bentpipe.config.sources import MAX_BYTES

LISTENER = '[[listener]]\naddress = ":1"\n'
TYPE = '[[machine_type]]\nsize = "small"\n'
EC2 = 'provider = "ec2"\n[machine_type.ec2]\ninstance_id = "i-0123456789abcdef0"\n'
TEMPLATE = 'provider = "ec2"\n[machine_type.ec2]\nlaunch_template = "lt-1"\n'
IMAGE = (
    '[machine_type.image]\nflavour = "moby"\nbuildkit = "/opt/buildkit"\n[machine_type.image.cache]\nfile = "60GiB"\n'
)
CA = '[satellite_ca]\naddress = "127.0.0.1:9"\nmachines_call = "192.0.2.1:9"\n'
ISSUED = "[machine_type.tls]\nissued = true\n"
ISSUER = '[[oidc_issuer]]\nname = "hub"\nissuer = "https://hub.example"\naudience = "us"\n'
RULE = (
    '[[satellite]]\norg = "acme"\nname = "a"\n[satellite.process]\ncommand = ["true", "{{port}}"]\n'
    '[[oidc_rule]]\nname = "ci"\nissuer = "hub"\ngrants = ["acme/*"]\nclaims = {claims}\n'
)
PROCESS = '[machine_type.process]\ncommand = ["true", "{port}"]\n'


def image(settings: str = "", cache: str = 'file = "60GiB"') -> str:
    """A machine type with an image of the settings and the cache."""
    whole = f'[machine_type.image]\nbuildkit = "/opt/buildkit"\n{settings}\n[machine_type.image.cache]\n{cache}\n'
    return LISTENER + TYPE + TEMPLATE + whole


def problems(path: Path) -> list[tuple[str, str]]:
    with pytest.raises(ConfigErrors) as error:
        load_config(path)
    return [(problem.where, problem.message) for problem in error.value.problems]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ('[[listener]]\naddress = ":1"\nsystemd = "edge"\n', "listener[0]", "give exactly one of address and systemd"),
        ("[[listener]]\n", "listener[0]", "give exactly one of address and systemd"),
        (LISTENER + "api = true\none_request_per_connection = true\n", "listener[0]", "not both"),
        (LISTENER + "[limits]\nmax_connections = 10\nmax_strangers = 10\n", "limits", "less than max_connections"),
        (LISTENER + f'[control]\npath = "/{"x" * 120}"\n', "control", "too many for a socket"),
        (LISTENER + TYPE + EC2, "machine_type[0]", "needs a launch_template"),
        (
            LISTENER + TYPE + TEMPLATE + IMAGE + "[machine_type.responder]\nport = 1\n",
            "machine_type[0]",
            "the same port",
        ),
        (
            LISTENER + TYPE + TEMPLATE + "[machine_type.responder]\ninterval = 0\n",
            "machine_type[0].responder.interval",
            "1",
        ),
        (LISTENER + TYPE + PROCESS + "port = 80\n", "machine_type[0]", "port must be 0"),
        (LISTENER + TYPE + PROCESS + '[store]\nkind = "none"\n', "machine_type", "needs a store"),
        (LISTENER + TYPE + "reserve = 1\n" + PROCESS, "machine_type[0]", "reserve needs provider 'ec2'"),
        (
            LISTENER + TYPE + "reserve = 1\n" + TEMPLATE + "hibernation = false\n",
            "machine_type[0]",
            "hibernation = true",
        ),
        (LISTENER + TYPE + "reserve = 21\n" + TEMPLATE, "machine_type[0].reserve", "20"),
        (LISTENER + TYPE + 'reserve_life = "60d"\n' + TEMPLATE, "machine_type[0].reserve_life", "4320000"),
        (
            LISTENER + TYPE + '[machine_type.process]\ncommand = ["/absent/program", "{port}"]\n',
            "machine_type[0].process.command",
            "program '/absent/program': there is no such file",
        ),
        (
            LISTENER + TYPE + PROCESS + 'directory = "/absent/folder"\n',
            "machine_type[0].process.directory",
            "/absent/folder is not a directory",
        ),
        (image(cache=""), "machine_type[0].image.cache", "exactly one of device and file"),
        (image(cache='device = "/dev/a"\nfile = "60GiB"'), "machine_type[0].image.cache", "exactly one of"),
        (
            image(cache='file = "60GiB"\nprune_below_percent = 30\nprune_until_percent = 30'),
            "machine_type[0].image.cache",
            "must be more than prune_below_percent",
        ),
        (
            image(cache='file = "60GiB"\nkeep_percent = 90\nprune_below_percent = 15'),
            "machine_type[0].image.cache",
            "every build would prune",
        ),
        (
            image(cache='file = "4GiB"\nballast = "2GiB"'),
            "machine_type[0].image.cache",
            "more than a quarter of file",
        ),
        (image('cni_subnet = "10.0.0.0/33"'), "machine_type[0].image", "cni_subnet: "),
        (image("[machine_type.image.health]\ntimeout = 9"), "machine_type[0].image", "no setting for health"),
        (image('additional_config = "debug = true"'), "machine_type[0].image", "begin with the header of a table"),
        (LISTENER + TYPE + PROCESS + IMAGE, "machine_type[0]", "for machines that the daemon launches"),
        (LISTENER + '[store]\ndetail = "1h"\n', "store", "detail is less than a day"),
        (LISTENER + '[store]\ndetail = "10d"\nkeep = "5d"\n', "store", "keep is less than detail"),
        (
            LISTENER + TYPE + '[machine_type.process]\ncommand = ["/etc", "{port}"]\n',
            "machine_type[0].process.command",
            "is a directory, not a program",
        ),
        (
            LISTENER + TYPE + '[machine_type.process]\ncommand = ["/etc/passwd", "{port}"]\n',
            "machine_type[0].process.command",
            "chmod +x may be missing",
        ),
        (
            LISTENER + TYPE + '[machine_type.process]\ncommand = ["absent-program", "{port}"]\n',
            "machine_type[0].process.command",
            "is in no folder of PATH",
        ),
        (
            LISTENER + TYPE + TEMPLATE + '[[machine_type.ec2.alternative]]\nzone = "a"\nsubnet = "subnet-12345678"\n',
            "machine_type[0].ec2.alternative[0]",
            "give zone or subnet, not both",
        ),
        (
            LISTENER + TYPE + TEMPLATE + '[[machine_type.ec2.alternative]]\nzone = "a"\n' * 2,
            "machine_type[0].ec2",
            "an alternative stands twice",
        ),
        ('[[listener]]\naddress = "here:1"\n', "listener[0].address", "is not a valid address"),
        ('[[listener]]\naddress = "::1:1"\n', "listener[0].address", "is not a valid address"),
        ("[[listener]]\naddress = 1\n", "listener[0].address", "is not a valid address"),
        (LISTENER + TYPE + '[machine_type.process]\ncommand = ["true"]\n', "machine_type[0].process", "{port}"),
        (LISTENER + TYPE + TEMPLATE + "[machine_type.tls]\n", "machine_type[0].tls", "exactly one of ca and issued"),
        (
            LISTENER + TYPE + TEMPLATE + ISSUED + 'server_name = "here"\n',
            "machine_type[0].tls",
            "remove certificate, key, server_name",
        ),
        (LISTENER + TYPE + TEMPLATE + ISSUED, "machine_type[0].tls.issued", "needs a [satellite_ca] section"),
        (LISTENER + TYPE + PROCESS + ISSUED + CA, "machine_type[0].tls.issued", "that the daemon launches"),
        (LISTENER + CA + '[store]\nkind = "none"\n', "satellite_ca", "needs a store"),
        (
            LISTENER + CA + '[store]\nkind = "dynamodb"\ntable = "fleet"\nregion = "eu-central-1"\n',
            "satellite_ca.file",
            "`bentpipe ca new`",
        ),
        (
            LISTENER + '[registration]\nnetworks = ["10.0.0.0/8"]\n' + '[store]\nkind = "none"\n',
            "registration",
            "needs a store",
        ),
        (
            LISTENER + RULE.format(claims='{repository_id = "1"}'),
            "oidc_rule[0].issuer",
            "there is no [[oidc_issuer]] named 'hub'",
        ),
        (LISTENER + ISSUER + RULE.format(claims='{ref = "main"}'), "oidc_rule[0].claims", "one of"),
        (LISTENER + ISSUER + RULE.format(claims='{sub = "a"}'), "oidc_rule[0]", "cannot be matched: name single"),
        (LISTENER + ISSUER + RULE.format(claims='{repository_id = ""}'), "oidc_rule[0]", "an empty value"),
        (
            LISTENER + ISSUER + RULE.format(claims='{repository_id = "1"}') + 'patterns = {repository_id = "*"}\n',
            "oidc_rule[0]",
            "is in claims and in patterns",
        ),
        (
            LISTENER + ISSUER + RULE.format(claims='{repository_id = "1"}') + '[store]\nkind = "none"\n',
            "oidc_rule",
            "needs a store",
        ),
        (LISTENER + ISSUER.replace("https", "http"), "oidc_issuer[0]", "issuer must be an https:// address"),
        (LISTENER + ISSUER + 'id_claims = ["sub"]\n', "oidc_issuer[0]", "does not identify an owner for ever"),
    ],
)
def test_each_is_told_with_its_place(tmp_path: Path, text: str, where: str, words: str) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text(text)
    assert [(at, words in message) for at, message in problems(path)] == [(where, True)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes"),
        (b"[[listener", "not TOML"),
        (b"\xff", "not TOML"),
    ],
)
def test_a_file_that_is_not_a_configuration(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "bentpipe.toml"
    if content is not None:
        path.write_bytes(content)
    assert [(at, words in message) for at, message in problems(path)] == [("", True)]


def test_the_control_socket_is_where_the_service_manager_says() -> None:
    assert ControlSection().socket_path({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a/control.sock")
    assert ControlSection().socket_path({}) is None
    assert ControlSection(path=Path("/run/c")).socket_path({"RUNTIME_DIRECTORY": "/run/a"}) == Path("/run/c")


def test_limits_for_strangers_follow_from_the_others_unless_they_are_given() -> None:
    by_default = LimitsSection(max_connections=1000)
    assert 0 < by_default.places_for_strangers < 1000
    assert by_default.bytes_for_strangers > by_default.places_for_strangers
    given = LimitsSection(max_connections=1000, max_strangers=10, stranger_bytes=1 << 20)
    assert (given.places_for_strangers, given.bytes_for_strangers) == (10, 1 << 20)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("", False),
        ("[machine_type.responder]\n", True),
        ('quiet_connections = "keep"\n[machine_type.responder]\n', False),
        ('quiet_connections = "end"\n', True),
    ],
)
def test_quiet_connections_are_ended_by_default_if_a_responder_counts_builds(
    text: str, ends: bool, tmp_path: Path
) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text(LISTENER + TYPE + text + PROCESS + f'[store]\npath = "{tmp_path}/store.sqlite"\n')
    (kind,) = load_config(path).machine_type
    assert kind.satellite("acme", "one").ends_quiet is ends
