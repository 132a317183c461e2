"""Files of the folder beside a configuration: their order, and mistakes with the file and the line."""

from pathlib import Path

import pytest

from bentpipe.config.load import ConfigErrors, load_config, parse_config
from bentpipe.config.sources import LISTS, Texts

MAIN = '[[listener]]\naddress = ":1"\n'
SATELLITE = '[[satellite]]\norg = "acme"\nname = "{name}"\n[satellite.process]\ncommand = ["true", "{{port}}"]\n'
TOKEN = '[[token]]\nname = "{name}"\nhash = "sha256:{digit:064x}"\ngrants = ["acme/*"]\n'


def satellite(name: str) -> str:
    return SATELLITE.format(name=name)


def token(name: str, digit: int) -> str:
    return TOKEN.format(name=name, digit=digit)


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "bentpipe.toml"
    path.write_text(MAIN)
    (tmp_path / "bentpipe.d").mkdir()
    return path


def put(main: Path, name: str, text: str) -> Path:
    path = main.with_suffix(".d") / name
    path.write_text(text)
    return path


def mistakes(main: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as error:
        load_config(main)
    return str(error.value).splitlines()


def test_the_files_are_read_in_the_order_of_their_names_after_the_main_file(main: Path) -> None:
    main.write_text(MAIN + satellite("first"))
    put(main, "20-b.toml", satellite("third") + token("two", 2))
    put(main, "10-a.toml", token("one", 1) + satellite("second"))
    put(main, "notes.txt", "not read")
    put(main, ".30-c.toml", "not read")
    config = load_config(main)
    assert [each.name for each in config.satellite] == ["first", "second", "third"]
    assert [each.name for each in config.token] == ["one", "two"]


def test_a_duplicate_names_both_files_and_lines(main: Path) -> None:
    one = put(main, "one.toml", token("a", 1) + "\n" + satellite("ci"))
    two = put(main, "two.toml", satellite("other") + satellite("ci"))
    assert mistakes(main) == [f"{two}:6: satellite[1]: the same as satellite[0], {one}:6"]


def test_a_wrong_value_has_its_own_file_and_entry(main: Path) -> None:
    path = put(main, "one.toml", satellite("ci") + "\n" + satellite("b ad"))
    (told,) = mistakes(main)
    assert told.startswith(f"{path}:7: satellite[1].name: "), told
    main.write_text(MAIN + "nothing = 1\n")
    assert f"{main}:1: listener[0].nothing: unknown key" in mistakes(main)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits]\nmax_held = 3\n", "limits: belongs in {main}; a file of the folder may have satellite, "),
        ('[satellite]\norg = "acme"\n', "satellite: expected [[satellite]], with two brackets"),
        ("[[satellite]\n", ": not TOML: "),
    ],
)
def test_what_a_file_must_not_have(main: Path, text: str, words: str) -> None:
    path = put(main, "one.toml", text)
    (told,) = mistakes(main)
    assert told.startswith(f"{path}: ".removesuffix(" ") if words[0] == ":" else f"{path}: "), told
    assert words.format(main=main) in told


def test_a_file_that_cannot_be_read_is_named(main: Path) -> None:
    folder = main.with_suffix(".d") / "one.toml"
    folder.mkdir()
    assert mistakes(main) == [f"{folder}: Is a directory"]
    folder.rmdir()
    broken = main.with_suffix(".d") / "two.toml"
    broken.write_bytes(b"\xff")
    assert mistakes(main)[0].startswith(f"{broken}: not TOML: ")


def test_every_list_of_the_folder_is_one_of_the_configuration(main: Path) -> None:
    fields = load_config(main).__class__.model_fields
    assert set(LISTS) <= set(fields)


def test_the_texts_survive_being_kept(main: Path) -> None:
    put(main, "one.toml", satellite("ci"))
    texts = Texts.read(main)
    again = Texts.loaded(texts.dumped())
    assert again == texts
    assert parse_config(again).config == load_config(main)
    for wrong in (b"", b"{}", b"[]", b'[["a"]]', b'[["a", "b"], ["c", 1]]'):
        with pytest.raises(ValueError, match=r"not a kept|Expecting value"):
            Texts.loaded(wrong)
