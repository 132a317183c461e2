"""Makes bentpipe(1) of the command line and bentpipe.toml(5) of the commented sample: the Debian package's build calls this.

The input is our own. The output is roff with the macros of man(7), and carries no date, so that the same tree gives the same
pages.
"""

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import click

from bentpipe.daemon.service.cli import main

COMMAND_PAGE, CONFIGURATION_PAGE = "bentpipe.1", "bentpipe.toml.5"
EXIT_STATUS = (
    ("0", "done; after SIGTERM: drained"),
    ("1", "it has failed"),
    ("2", "the configuration or the command line is wrong, or a port is taken"),
    ("3", "drained, but connections were cut at the deadline"),
    ("4", "init has written everything, but the call through the daemon has failed"),
)
FILES = (
    ("/etc/bentpipe/bentpipe.toml", "the configuration of the service; see bentpipe.toml(5)"),
    ("/var/lib/bentpipe", "the service's state: the store, keys of its own, its last good configuration"),
    ("/run/bentpipe", "the service's control sockets"),
    ("/usr/share/bentpipe", "the commented sample, and an IAM policy for satellites on EC2"),
)
DASH = "–"
TABLE = re.compile(r"(?:# )?(?P<header>\[\[?[^\]]+\]\]?)\s*(?:#\s*(?P<words>.*))?")
KEY = re.compile(r'(?:# )?(?P<setting>[\w."/*-]+ += +(?:"[^"]*"|[^#"])+?)\s*(?:#\s*(?P<words>.*))?')
CONTINUED = re.compile(r"(?:#? {4,}|#\s{4,})#?\s*(?P<words>.*)")


def to_command_page() -> str:
    """bentpipe(1)."""
    context = click.Context(main, info_name="bentpipe")
    lines = [
        *_head("BENTPIPE", 1, "bentpipe", main.help or ""),
        ".SH SYNOPSIS",
        ".B bentpipe",
        ".I COMMAND",
        ".RI [ OPTION \\~.\\|.\\|.]",
        ".SH DESCRIPTION",
        "The daemon stands before remote build machines, the satellites. It wakes a satellite when a client connects, and",
        "joins the two connections. The other commands prepare it, ask it, and act through it.",
        ".SH COMMANDS",
        *_commands(main, context),
        ".SH EXIT STATUS",
        *_terms(EXIT_STATUS),
        ".SH FILES",
        *_terms(FILES),
        ".SH SEE ALSO",
        ".BR bentpipe.toml (5),",
        ".BR systemd.socket (5),",
        ".BR journalctl (1)",
    ]
    return "\n".join(lines) + "\n"


def to_configuration_page(sample: str) -> str:
    """bentpipe.toml(5), of the text of the sample."""
    lines = [
        *_head("BENTPIPE.TOML", 5, "bentpipe.toml", "configuration of bentpipe"),
        ".SH DESCRIPTION",
        "A key is shown with its default, or with an example where it has none.",
        *_entries(sample.splitlines()),
        ".SH SEE ALSO",
        ".BR bentpipe (1)",
    ]
    return "\n".join(lines) + "\n"


def read_sample() -> str:
    """The sample of this installation."""
    return files("bentpipe.config").joinpath("sample.toml").read_text()


def write_pages(folder: Path) -> None:
    """Write both pages into a folder, which is made. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMMAND_PAGE).write_text(to_command_page())
    (folder / CONFIGURATION_PAGE).write_text(to_configuration_page(read_sample()))


def _roff(text: str) -> str:
    """Text as roff has it: a backslash, a hyphen, a quote and a leading dot or apostrophe mean something else there."""
    escaped = (
        text.replace("\\", "\\e")
        .replace("-", "\\-")
        .replace('"', "\\(dq")
        .replace("…", "\\|.\\|.\\|.")
        .replace(DASH, "\\(en")
    )
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _head(title: str, section: int, name: str, words: str) -> list[str]:
    version = importlib.metadata.version("bentpipe")
    return [
        f'.TH {title} {section} "" "bentpipe {version}"',
        ".SH NAME",
        f"{_roff(name)} \\- {_roff(words.splitlines()[0].rstrip('.'))}",
    ]


def _terms(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for term, words in rows:
        yield from (".TP", f".B {_roff(term)}", _roff(words))


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Every command below a group, by name, with its arguments, options and help."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
            continue
        usage = " ".join(command.collect_usage_pieces(inner))
        yield f'.SS "{_roff(f"{inner.command_path} {usage}".strip())}"'
        yield from _paragraphs(command.help or "")
        for parameter in command.get_params(inner):
            record = parameter.get_help_record(inner)
            if record is not None and record[1] and parameter.name != "help":
                yield from (".TP", f".B {_roff(record[0])}", _roff(" ".join(record[1].split())))


def _paragraphs(text: str) -> Iterator[str]:
    for index, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if index:
            yield ".P"
        yield _roff(" ".join(paragraph.split()))


def _entries(lines: list[str]) -> Iterator[str]:
    """A heading for each table, an entry for each key, and the words that stand beside or below them."""
    for line in lines:
        stripped = line.rstrip()
        if not stripped:
            continue
        if found := TABLE.fullmatch(stripped):
            yield f'.SH "{_roff(found["header"])}"'
        elif found := KEY.fullmatch(stripped):
            yield from (".TP", f".B {_roff(' '.join(found['setting'].split()))}")
        elif found := CONTINUED.fullmatch(stripped):
            yield _roff(found["words"])
            continue
        else:
            yield from (".P", _roff(stripped.removeprefix("#").strip()))
            continue
        if found["words"]:
            yield _roff(found["words"])


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
