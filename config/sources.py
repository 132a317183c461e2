"""The texts of a configuration: its file, and the files of the folder beside it, as one; and where each entry stands.

For `bentpipe.toml` the folder is `bentpipe.d`. Its `*.toml` files are read in the order of their names, after the file. They
may have lists of named entries alone, so that no file can change what another file says.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

FOLDER_SUFFIX, FILE_SUFFIX = ".d", ".toml"

LISTS = ("satellite", "machine_type", "token", "certificate", "oidc_issuer", "oidc_rule")
"""What a file of the folder may have."""

MAX_BYTES = 4 << 20
"""Of all files together. A configuration has a few KiB, or some hundred for thousands of satellites. More means that the
path is wrong."""

MAX_FILES = 4096
"""One for each satellite fits. More means that the folder is wrong."""

ENTRY = re.compile(rf"^({'|'.join(LISTS)}|listener)\[(\d+)\]")
"""The beginning of a mistake's place, if the mistake is in an entry of a list."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class ConfigProblem:
    """One mistake: where ("satellite[2].process.port"; "" is the file itself), and what was expected.

    `where` counts the entries of its own file. `place` is that file with the line; "" means the main file.
    """

    where: str
    message: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ConfigErrors(Exception):
    """The configuration cannot be used; `problems` has every mistake in it."""

    def __init__(self, path: Path, problems: list[ConfigProblem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{problem.place or path}: {problem}" for problem in self.problems))


@dataclasses.dataclass(frozen=True, slots=True)
class EntryPlace:
    """Where an entry of a list stands: in which file, as which of its own entries, and in which line if that is known."""

    path: Path
    where: str
    line: int | None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line is not None else str(self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class Texts:
    """The main file and its text, and those of the folder's files, in order."""

    path: Path
    text: str
    more: tuple[tuple[Path, str], ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the files. Raises ConfigErrors."""
        left = MAX_BYTES
        read: list[tuple[Path, str]] = []
        for each in (path, *_folder_files(path)):
            try:
                with each.open("rb") as file:
                    data = file.read(left + 1)
                if len(data) > left:
                    raise ConfigErrors(path, [ConfigProblem("", f"larger than {MAX_BYTES} bytes", _other(each, path))])
                left -= len(data)
                read.append((each, data.decode()))
            except OSError as exc:
                raise ConfigErrors(path, [ConfigProblem("", exc.strerror or str(exc), _other(each, path))]) from exc
            except UnicodeDecodeError as exc:
                raise ConfigErrors(path, [ConfigProblem("", f"not TOML: {exc}", _other(each, path))]) from exc
        return cls(path, read[0][1], tuple(read[1:]))

    def dumped(self) -> bytes:
        """All texts as one line of JSON."""
        files = [[str(path), text] for path, text in ((self.path, self.text), *self.more)]
        return json.dumps(files).encode() + b"\n"

    @classmethod
    def loaded(cls, data: bytes) -> Self:
        """Read what `dumped` has made. Raises ValueError."""
        match json.loads(data):
            case [[str(path), str(text)], *more]:
                pairs = [(Path(each[0]), each[1]) for each in more if _is_pair(each)]
                if len(pairs) == len(more):
                    return cls(Path(path), text, tuple(pairs))
        raise ValueError("not a kept configuration")

    def merged(self) -> "Merged":
        """Parse the files and put their lists together. Raises ConfigErrors with the mistakes of every file."""
        problems: list[ConfigProblem] = []
        raw: dict[str, object] = {}
        counts: dict[str, list[tuple[Path, str, int]]] = {name: [] for name in (*LISTS, "listener")}
        for path, text in ((self.path, self.text), *self.more):
            try:
                parsed = tomllib.loads(text)
            except tomllib.TOMLDecodeError as exc:
                problems.append(ConfigProblem("", f"not TOML: {exc}", _other(path, self.path)))
                continue
            if path == self.path:
                raw = parsed
            else:
                problems += _misplaced(path, self.path, parsed)
            for name, entries in counts.items():
                found = parsed.get(name)
                if isinstance(found, list):
                    entries.append((path, text, len(found)))
                    before = raw.get(name, [])
                    if path != self.path and isinstance(before, list):
                        raw[name] = [*before, *found]
        if problems:
            raise ConfigErrors(self.path, problems)
        return Merged(self.path, raw, {name: tuple(entries) for name, entries in counts.items()})


@dataclasses.dataclass(frozen=True, slots=True)
class Merged:
    """The files as one, and which file has which entries."""

    path: Path
    raw: Mapping[str, object]
    entries: Mapping[str, tuple[tuple[Path, str, int], ...]]
    """By the list's name: file, text, number of entries."""

    def place(self, where: str) -> EntryPlace:
        """Where something stands that is known by its place in the whole: "token[12].name"."""
        match = ENTRY.match(where)
        if match is None:
            return EntryPlace(self.path, where, None)
        name, index = match[1], int(match[2])
        for path, text, count in self.entries.get(name, ()):
            if index < count:
                return EntryPlace(path, f"{name}[{index}]{where[match.end() :]}", _line_of(text, name, index, count))
            index -= count
        return EntryPlace(self.path, where, None)

    def problem(self, where: str, message: str) -> ConfigProblem:
        """A mistake, with its place."""
        place = self.place(where)
        told = "" if place.path == self.path and place.line is None else str(place)
        return ConfigProblem(place.where, message, told)

    def same_as(self, where: str, other: str) -> str:
        """The words for an entry that stands twice: where the other one is."""
        place = self.place(other)
        known = place.line is not None or place.path != self.place(where).path
        return f"the same as {place.where}" + (f", {place}" if known else "")


def folder_of(path: Path) -> Path:
    """The folder that belongs to a configuration file."""
    return path.with_suffix(FOLDER_SUFFIX)


def _folder_files(path: Path) -> list[Path]:
    """The folder's files in the order of their names. Raises ConfigErrors."""
    folder = folder_of(path)
    if folder == path:
        return []
    try:
        found = sorted(each for each in folder.iterdir() if each.suffix == FILE_SUFFIX and each.name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise ConfigErrors(path, [ConfigProblem("", exc.strerror or str(exc), str(folder))]) from exc
    if len(found) > MAX_FILES:
        raise ConfigErrors(path, [ConfigProblem("", f"more than {MAX_FILES} files", str(folder))])
    return found


def _misplaced(path: Path, main: Path, parsed: Mapping[str, object]) -> Iterator[ConfigProblem]:
    for name, value in parsed.items():
        if name not in LISTS:
            yield ConfigProblem(name, f"belongs in {main}; a file of the folder may have {', '.join(LISTS)}", str(path))
        elif not isinstance(value, list):
            yield ConfigProblem(name, f"expected [[{name}]], with two brackets", str(path))


def _line_of(text: str, name: str, index: int, count: int) -> int | None:
    """The line of an entry's header. None if it cannot be told: a text or an array looks like one."""
    headers = list(re.finditer(rf"^[ \t]*\[\[[ \t]*[\"']?{name}[\"']?[ \t]*\]\]", text, re.MULTILINE))
    return text.count("\n", 0, headers[index].start()) + 1 if len(headers) == count else None


def _other(path: Path, main: Path) -> str:
    return "" if path == main else str(path)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
