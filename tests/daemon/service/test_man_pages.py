"""The man pages that the package has: they name every command, option and key, and roff has nothing to complain of."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from bentpipe.daemon.service.cli import main
from bentpipe.daemon.service.man_pages import (
    COMMAND_PAGE,
    CONFIGURATION_PAGE,
    read_sample,
    to_configuration_page,
    write_pages,
)

COMMENTED = re.compile(r"^# (?=\[\[?[a-z_.]+\]|[a-z_]+ += )", re.MULTILINE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man") / "pages"
    write_pages(folder)
    return folder


def plain(page: Path) -> str:
    """A page without the escapes that its text has."""
    return page.read_text().replace("\\-", "-").replace("\\(dq", '"').replace("\\&", "").replace("\\|.", ".")


def commands(group: click.Group, path: str = "bentpipe") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        found += (
            commands(command, f"{path} {name}") if isinstance(command, click.Group) else [(f"{path} {name}", command)]
        )
    return found


def test_every_command_and_option_is_there(pages: Path) -> None:
    text = plain(pages / COMMAND_PAGE)
    assert len(commands(main)) > 20
    for path, command in commands(main):
        assert f'.SS "{path}' in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in text, (path, parameter.opts)


def test_every_key_of_the_sample_is_an_entry(pages: Path) -> None:
    entries = [
        line.removeprefix(".B ") for line in plain(pages / CONFIGURATION_PAGE).splitlines() if line.startswith(".B ")
    ]
    names = {entry.partition(" = ")[0] for entry in entries}

    def leaves(value: object, name: str) -> set[str]:
        if isinstance(value, dict) and (name not in names):
            return {leaf for key, inner in value.items() for leaf in leaves(inner, key)}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return {leaf for inner in value for leaf in leaves(inner, name)}
        return {name}

    keys = leaves(tomllib.loads(COMMENTED.sub("", read_sample())), "")
    assert len(keys) > 100
    assert keys <= names, sorted(keys - names)


def test_a_key_has_its_words_and_what_goes_on_in_the_next_line() -> None:
    sample = '[daemon] # of the host\nname = "a-b" # one\n         # two\n# other = 1 # three\n# By itself\n'
    lines = to_configuration_page(sample).splitlines()
    assert lines[lines.index('.SH "[daemon]"') : -2] == [
        '.SH "[daemon]"',
        "of the host",
        ".TP",
        ".B name = \\(dqa\\-b\\(dq",
        "one",
        "two",
        ".TP",
        ".B other = 1",
        "three",
        ".P",
        "By itself",
    ]


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
@pytest.mark.parametrize("name", [COMMAND_PAGE, CONFIGURATION_PAGE])
def test_roff_accepts_it(pages: Path, name: str) -> None:
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", str(pages / name)],
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MANWIDTH": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""
    assert "NAME" in shown.stdout
