"""Mistakes in a configuration, one by one: each is told with its place and what to do."""

from pathlib import Path

import pytest

from bentpipe.config.limits import LimitsSection
from bentpipe.config.load import MAX_FILE_BYTES, ConfigErrors, load_config
from bentpipe.config.model import ControlSection

LISTENER = '[[listener]]\naddress = ":1"\n'
TYPE = '[[machine_type]]\nsize = "small"\n'
EC2 = 'provider = "ec2"\n[machine_type.ec2]\ninstance_id = "i-0123456789abcdef0"\n'
TEMPLATE = 'provider = "ec2"\n[machine_type.ec2]\nlaunch_template = "lt-1"\n'
IMAGE = (
    '[machine_type.image]\nflavour = "moby"\nbuildkit = "/opt/buildkit"\n[machine_type.image.cache]\nfile = "60GiB"\n'
)
PROCESS = '[machine_type.process]\ncommand = ["true", "{port}"]\n'


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
        (
            LISTENER + TYPE + '[machine_type.process]\ncommand = ["/absent/program", "{port}"]\n',
            "machine_type[0].process.command",
            "there is no program '/absent/program'",
        ),
        (
            LISTENER + TYPE + PROCESS + 'directory = "/absent/folder"\n',
            "machine_type[0].process.directory",
            "/absent/folder is not a directory",
        ),
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
        (b"#" * (MAX_FILE_BYTES + 1), f"larger than {MAX_FILE_BYTES} bytes"),
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
