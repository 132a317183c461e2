"""Holds what people read to CONTRIBUTING's measure: plain phrases, links and paths that lead somewhere, packages that say
what they never do."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RULES = Path(__file__).with_name("prose_rules.toml")
TOPS = ("bench", "config", "daemon", "native", "proto")
READ_ALSO = ("docs", "systemd", "tests", ".ci")
SUFFIXES = {".c", ".h", ".md", ".py", ".service", ".socket", ".toml"}
NAMES = {"Makefile", "run", "system-packages", "test-matrix", "pre-commit"}
SKIPPED = {"__pycache__", "corpus", "results", "node_modules", "target", "prose_rules.toml", "test_prose.py"}
"""Folders and files that hold no prose of ours."""
GENERATED = {"native/_engine.c"}

LINE_BREAK = re.compile(r"[ \t]*\n[ \t]*(?:(?:#+|\*|//|>|-)[ \t]+)?")
"""A line's end, and what begins the next line of a comment, a list or a quotation."""
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#([^)\s]+))?\)")
PATH = re.compile(
    rf"(?<![\w/.~-])((?:{'|'.join((*TOPS, *READ_ALSO[:-1]))})/[\w./-]+\.(?:py|c|h|md|toml|json|svg|service|socket))\b"
)
LONG_SENTENCE_WORDS = 40
"""A reader has forgotten its beginning by then. The measure of plain English is 20 on the average."""
NO_SENTENCES = re.compile(r"<!-- made by .*?<!-- end -->|```.*?```|^(?: *\||#|    ).*?$", re.DOTALL | re.MULTILINE)
"""Parts that a program makes, code, headings and tables."""
PARAGRAPH_END = re.compile(r"\n\s*\n|\n(?=\s*(?:- |\d+\. ))")
SENTENCE_END = re.compile(r"(?<=[.!?:;])\s")
SAYS_NEVER = re.compile(r"\b(never|must not|nothing)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase that must not be written, and why."""

    pattern: re.Pattern[str]
    reason: str
    instead: str


def phrases() -> list[Phrase]:
    entries = tomllib.loads(RULES.read_text())["phrase"]
    return [Phrase(re.compile(each["pattern"], re.IGNORECASE), each["reason"], each["instead"]) for each in entries]


def files() -> Iterator[Path]:
    """Everything in the tree that people read."""
    for path in ROOT.iterdir():
        if path.is_file() and (path.suffix in SUFFIXES or path.name in NAMES):
            yield path
    for top in (*TOPS, *READ_ALSO):
        for folder, folders, names in os.walk(ROOT / top):
            folders[:] = sorted(set(folders) - SKIPPED)
            for name in sorted(set(names) - SKIPPED):
                path = Path(folder) / name
                if (path.suffix in SUFFIXES or name in NAMES) and str(path.relative_to(ROOT)) not in GENERATED:
                    yield path


def found_in(text: str, rules: list[Phrase]) -> Iterator[tuple[int, str, Phrase]]:
    """(line number, the words, the rule) for each phrase in the text."""
    flat, starts = [], []
    at = length = 0
    for match in LINE_BREAK.finditer(text):
        piece = text[at : match.start()]
        flat.append(piece.replace("_", " ") + " ")
        length += len(piece) + 1
        starts.append(length)
        at = match.end()
    flat.append(text[at:].replace("_", " "))
    whole = "".join(flat)
    for rule in rules:
        for match in rule.pattern.finditer(whole):
            yield 1 + sum(start <= match.start() for start in starts), match[0], rule


def test_nobody_stumbles_over_a_phrase() -> None:
    rules = phrases()
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words!r}: {rule.reason}; write {rule.instead}"
        for path in files()
        for line, words, rule in found_in(path.read_text(), rules)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fine\n# So whoever\n# comes is refused", 2),
        ('"""It is told to\n    who asks."""', 1),
        ("a\nb\n * the port is\n * no port of ours", 3),
        ("def test_whoever_comes(): ...", 1),
        ("'x' is no address", 1),
    ],
)
def test_a_phrase_is_found(text: str, line: int) -> None:
    assert [found for found, _, _ in found_in(text, phrases())] == [line]


@pytest.mark.parametrize("text", ["there is no such file", "the port is no longer open", "nobody knows who asks"])
def test_plain_words_are_not(text: str) -> None:
    assert list(found_in(text, phrases())) == []


def anchors(path: Path) -> set[str]:
    """The names by which a Markdown file's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def sentences(text: str) -> Iterator[str]:
    """The sentences of Markdown, without tables, headings and code."""
    for paragraph in PARAGRAPH_END.split(NO_SENTENCES.sub("", text)):
        yield from SENTENCE_END.split(" ".join(paragraph.split()))


def test_no_sentence_of_a_page_is_long() -> None:
    pages = [path for path in files() if path.suffix == ".md"]
    long = [
        f"{path.relative_to(ROOT)}: {len(each.split())} words: {each}"
        for path in pages
        for each in sentences(path.read_text())
        if len(each.split()) > LONG_SENTENCE_WORDS
    ]
    assert long == []


def test_sentences_are_told_apart() -> None:
    text = "# Not\nOne is here. Two\nis here.\n\n- three\n- four\n\n| not | this |\n\n```\nnor this. x\n```\n"
    assert [each for each in sentences(text) if each] == ["One is here.", "Two is here.", "- three", "- four"]


def test_every_link_leads_somewhere() -> None:
    broken = []
    for path in files():
        if path.suffix != ".md":
            continue
        for target, anchor in LINK.findall(path.read_text()):
            there = path.parent / target
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append(f"{path.relative_to(ROOT)}: {target}{'#' + anchor if anchor else ''}")
    assert broken == []


def test_every_file_that_is_named_is_there() -> None:
    """From the root, or from a folder above the file. Not in tests, which name files that are not there."""
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files()
        if "tests" not in path.parts
        for name in PATH.findall(path.read_text())
        if name not in GENERATED and not any((folder / name).exists() for folder in path.parents)
    ]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    """A page that DESIGN.md does not link to is not found."""
    linked = {target for target, _ in LINK.findall((ROOT / "DESIGN.md").read_text())}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - linked == set()


def packages() -> list[str]:
    return sorted(str(init.parent.relative_to(ROOT)) for top in TOPS for init in (ROOT / top).rglob("__init__.py"))


@pytest.mark.parametrize("package", packages())
def test_every_package_says_what_it_holds_and_what_never(package: str) -> None:
    text = (ROOT / package / "__init__.py").read_text()
    docstring = text.removeprefix('"""').partition('"""')[0]
    assert text.startswith('"""'), "it begins with its docstring"
    assert len(docstring.split()) >= 20
    assert SAYS_NEVER.search(docstring)
