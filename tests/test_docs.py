"""Every command in a page is run by a test, or the page says why not; and every command that prose names exists.

`tests/test_docs_commands.py` and `tests/systemd/test_docs_installed.py` run them.
"""

import contextlib
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator

import click
import pydantic
import pytest

from beds.pages.blocks import read_blocks
from beds.pages.list import DOCS, PAGES, blocks_of
from bentpipe.config.model import Config
from bentpipe.daemon.service.cli import main

INLINE = re.compile(r"`(bentpipe [^`]+)`")
SEVERAL = ("listener", "satellite", "machine_type")
"""Sections of which there are several. `[satellite.tls]` in a page is a part of one."""
PLACEHOLDER = re.compile(r"[A-Z…]{2,}|\[|\||^[A-Z]$")


@pytest.mark.parametrize("page", PAGES)
def test_no_block_has_commands_that_nobody_runs(page: str) -> None:
    """A command is in a block that is fenced as `sh`: then a test runs it, or its reader sees a reason."""
    found = [
        f"{page}:{line}: {text!r}: fence this block as ```sh, or say above it: *Not run by a test: REASON.*"
        for block in blocks_of(page)
        if block.language != "sh" and block.file is None and not block.reason
        for line, text in block.commands()
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES)
def test_the_words_behind_a_fence_are_known(page: str) -> None:
    """A word that is misspelt would change where a block is run."""
    for block in blocks_of(page):
        rest = [word for word in block.words if not word.startswith("file=") and word not in ("systemd", "background")]
        assert rest == ([] if block.port is None else [str(block.port)]), f"{page}:{block.line}: {block.words}"


def named_commands() -> Iterator[tuple[str, str]]:
    """(page, command) for each command of ours that a page names in its sentences and blocks."""
    for page in PAGES:
        text = (DOCS / page).read_text()
        for match in INLINE.finditer(text):
            yield page, " ".join(match[1].split())


@pytest.mark.parametrize(("page", "words"), sorted(set(named_commands())))
def test_a_command_that_is_named_exists(page: str, words: str) -> None:
    """Its subcommands and options are those of the command line."""
    arguments = shlex.split(words.replace("…", ""), comments=True)[1:]
    command: click.Command = main
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if PLACEHOLDER.search(name):
            return
        choices = name.split("|")
        assert all(each in command.commands for each in choices), f"{page}: there is no `bentpipe … {name}`"
        command = command.commands[choices[0]]
    options = {option for parameter in command.params for option in parameter.opts}
    options |= set(command.context_settings.get("help_option_names", ())) | {"--help", "-h", "--version"}
    for argument in arguments:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in options, f"{page}: `{words}`: no option {argument}"


def fragments(page: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(line, what it says) for each piece of a configuration that a page shows."""
    for block in blocks_of(page):
        if block.language in ("", "toml"):
            with contextlib.suppress(tomllib.TOMLDecodeError):
                data = tomllib.loads(textwrap.dedent(block.text))
                yield (
                    block.line,
                    {
                        key: [value] if key in SEVERAL and isinstance(value, dict) else value
                        for key, value in data.items()
                    },
                )


@pytest.mark.parametrize("page", PAGES)
def test_a_configuration_that_is_shown_has_keys_and_values_that_exist(page: str) -> None:
    """A piece may lack what the page does not speak of."""
    for line, data in fragments(page):
        try:
            Config.model_validate(data)
        except pydantic.ValidationError as exc:
            wrong = [each for each in exc.errors() if each["type"] not in ("missing", "value_error")]
            assert wrong == [], f"{page}:{line}"


def test_blocks_are_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    page = tmp_path_factory.mktemp("page") / "page.md"
    page.write_text(
        "# One\n\n    bentpipe check\n\n## Two\n*Not run by a test: it needs a cloud.*\n```sh\nmake\n```\n\n"
        "- item\n\n  ```sh background 80\n  bentpipe serve\n  ```\n\n```toml file=a.toml systemd\n[a]\n```\n"
    )
    indented, cloud, serve, file = read_blocks(page)
    assert [text for _, text in indented.commands()] == ["bentpipe check"]
    assert (indented.is_run, cloud.is_run, cloud.reason) == (False, False, "it needs a cloud")
    assert (serve.port, serve.text, serve.section, serve.runs_in_namespaces) == (80, "bentpipe serve\n", "Two", True)
    assert (file.file, file.runs_on_a_host) == ("a.toml", True)


def test_a_fence_that_is_not_closed_is_a_mistake(tmp_path_factory: pytest.TempPathFactory) -> None:
    page = tmp_path_factory.mktemp("page") / "page.md"
    page.write_text("text\n```sh\nmake\n")
    with pytest.raises(ValueError, match=r"page\.md:2: this fence is not closed"):
        read_blocks(page)
