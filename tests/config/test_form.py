"""The keys that say where connections live: who reads which files, and what contradicts."""

from pathlib import Path

import pytest

from bentpipe.config.load import ConfigErrors, parse_config
from bentpipe.config.sources import Texts

LISTENER = """
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
certificate = "absent.pem"
key = "absent.key"
"""


def read(folder: Path, keys: str, *, keys_elsewhere: bool = False, listener: str = LISTENER) -> bool:
    """Whether clients may be admitted by snapshots. Raises ConfigErrors."""
    path = folder / "bentpipe.toml"
    path.write_text(f'[daemon]\n{keys}\n[store]\nkind = "none"\n{listener}')
    return parse_config(Texts.read(path), keys_elsewhere=keys_elsewhere).config.daemon.by_snapshots


@pytest.mark.parametrize(("admission", "by_snapshots"), [("auto", True), ("snapshot", True), ("asked", False)])
def test_who_admits_clients(tmp_path: Path, admission: str, *, by_snapshots: bool) -> None:
    listener = '[[listener]]\naddress = "127.0.0.1:0"\n'
    assert read(tmp_path, f'admission = "{admission}"', listener=listener) is by_snapshots


def test_files_of_listeners_are_looked_at_unless_another_unit_reads_them(tmp_path: Path) -> None:
    for keys in ("", 'data_plane = "inside"'):
        with pytest.raises(ConfigErrors, match=r"absent\.pem"):
            read(tmp_path, keys)
    assert read(tmp_path, "", keys_elsewhere=True)
    assert read(tmp_path, 'data_plane = "process"')


def test_snapshots_inside_are_a_contradiction(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match='data_plane is "inside"'):
        read(tmp_path, 'data_plane = "inside"\nadmission = "snapshot"')
