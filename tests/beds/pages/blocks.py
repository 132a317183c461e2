"""The code blocks of a page: pure.

A block of commands is fenced as `sh`. What follows on the fence's line is for the tests; no reader sees it:

- `systemd`: the commands need a host with the package; `beds.booted` has one.
- `background PORT`: the commands run until the page ends. The next block waits until the port is open.

A block of any language with `file=PATH` is the content of that file. A block of commands that no test runs has a line above
it in which its reader sees why: `*Not run by a test: REASON.*`
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^(?P<indent>\s*)```(?P<language>\S*)(?P<words>.*)$")
REASON = re.compile(r"^\s*\*Not run by a test: (?P<reason>\S.*\S)\.\*$")
INDENTED = re.compile(r"^(?: {4}|\t)\s*\S")
PROGRAMS = (
    *(
        "bentpipe",
        "make",
        "systemctl",
        "journalctl",
        "systemd-analyze",
        "apt",
        "apt-get",
        "dpkg",
        "pip",
        "python3",
        "sudo",
    ),
    *(
        "buildctl",
        "docker",
        "earthly",
        "grpcurl",
        "curl",
        "openssl",
        "aws",
        "certbot",
        "podman",
        "haproxy",
        "nginx",
        "envoy",
    ),
    *("export", "ssh", "install", "cp", "mv", "rm", "mkdir", "kill", "promtool", "sed", "printf", "echo", "cat", "tee"),
)
COMMAND = re.compile(rf"^\s*(?:[$#] )?(?:{'|'.join(PROGRAMS)})(?: (?!=)|$)")
"""A line that a reader takes for a command."""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A block of a page, with its first line's number and the heading above it."""

    line: int
    language: str
    words: tuple[str, ...]
    text: str
    section: str
    reason: str = ""

    @property
    def is_run(self) -> bool:
        """Whether tests run it, or write the file that it is."""
        return not self.reason and (self.language == "sh" or self.file is not None)

    @property
    def runs_on_a_host(self) -> bool:
        """Whether it is run where the package is installed, under systemd."""
        return self.is_run and "systemd" in self.words

    @property
    def runs_in_namespaces(self) -> bool:
        """Whether it is run in namespaces of this machine."""
        return self.is_run and "systemd" not in self.words

    @property
    def file(self) -> str | None:
        """The file whose content it is."""
        found = [word.removeprefix("file=") for word in self.words if word.startswith("file=")]
        return found[0] if found else None

    @property
    def port(self) -> int | None:
        """The port that its commands open, if they run until the page ends."""
        return int(self.words[self.words.index("background") + 1]) if "background" in self.words else None

    def commands(self) -> Iterator[tuple[int, str]]:
        """The lines that a reader takes for commands, with their numbers."""
        for number, line in enumerate(self.text.splitlines(), self.line):
            if COMMAND.match(line):
                yield number, line.strip()


def read_blocks(page: Path) -> list[Block]:
    """All blocks of a page, in their order. Raises ValueError if a fence is not closed."""
    lines = page.read_text().splitlines()
    blocks: list[Block] = []
    number, section = 0, ""
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening:
            end = next((n for n in range(number + 1, len(lines)) if lines[n].strip() == "```"), None)
            if end is None:
                raise ValueError(f"{page.name}:{number + 1}: this fence is not closed")
            indent = len(opening["indent"])
            text = "\n".join(line[indent:] for line in lines[number + 1 : end])
            words = tuple(opening["words"].split())
            blocks.append(Block(number + 2, opening["language"], words, text + "\n", section, _reason(lines, number)))
            number = end + 1
        elif INDENTED.match(lines[number]) and number and not lines[number - 1].strip():
            end = number
            while end < len(lines) and (INDENTED.match(lines[end]) or not lines[end].strip()):
                end += 1
            blocks.append(Block(number + 1, "", (), "\n".join(lines[number:end]) + "\n", section))
            number = end
        else:
            section = lines[number].lstrip("# ") if lines[number].startswith("#") else section
            number += 1
    return blocks


def _reason(lines: list[str], fence: int) -> str:
    """What stands above a fence for its reader."""
    above = next((line for line in reversed(lines[:fence]) if line.strip()), "")
    found = REASON.match(above)
    return found["reason"] if found else ""
