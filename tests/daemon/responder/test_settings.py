"""The settings' file: everything that is wrong is named at once."""

from pathlib import Path

import pytest

from bentpipe.daemon.responder.settings import MAX_SETTINGS_BYTES, ResponderSettings, SettingsError, load_settings


def load(tmp_path: Path, text: str) -> ResponderSettings:
    path = tmp_path / "responder.json"
    path.write_text(text)
    return load_settings(str(path))


def test_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, '{"listen": "[::]:9571"}')
    assert found == ResponderSettings(listen="[::]:9571")
    assert found.address == ("::", 9571)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("[]", "must be one JSON object"),
        ("[" * 10000, "cannot be read"),
        ('{"listen": "x"', "cannot be read"),
        ('{"listen": "[::]:1", "lisen": 1, "key": 2}', "lisen is not a setting; key must be a string"),
        ('{"listen": "[::]:1", "prune_below_percent": true}', "prune_below_percent must be a number"),
        ('{"listen": "[::]:1", "prune_below_percent": 10.5}', "prune_below_percent must be a number"),
        ("{}", "listen must be HOST:PORT"),
        ('{"listen": ":1"}', "listen must be HOST:PORT"),
        ('{"listen": "[::]:65536"}', "listen must be HOST:PORT"),
        ('{"listen": "[::]:-1"}', "listen must be HOST:PORT"),
        ('{"listen": "[::]:1", "certificate": "a"}', "certificate and key go together"),
        ('{"listen": "[::]:1", "client_ca": "a"}', "client_ca needs certificate and key"),
        ('{"listen": "[::]:1", "client_name": "a"}', "client_name needs client_ca"),
        ('{"listen": "[::]:1", "buildkit_flavor": "docker"}', "buildkit_flavor must be moby or earthly"),
        ('{"listen": "[::]:1", "builds_cgroup": "a/../.."}', "builds_cgroup must not contain .."),
        ('{"listen": "[::]:1", "prune_below_percent": 30}', "prune_below_percent <= prune_until_percent"),
        ('{"listen": "[::]:1", "prune_until_percent": 101}', "prune_below_percent <= prune_until_percent"),
        ('{"listen": "[::]:1", "memory_stall_percent": 101}', "memory_stall_percent must be 0 to 100"),
        ('{"listen": "[::]:1", "memory_stall_s": 0}', "memory_stall_percent must be 0 to 100"),
        ('{"listen": "[::]:1", "real_time_priority": -1}', "real_time_priority must be 0 to 99"),
        ('{"listen": "[::]:1", "real_time_priority": 100}', "real_time_priority must be 0 to 99"),
        ('{"listen": "[::]:1", "ballast_bytes": -1}', "ballast_bytes must not be negative"),
        ('{"listen": "[::]:1", "ballast_inodes": 65537}', "ballast_inodes must be 0 to 65536"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert said in str(caught.value)


def test_all_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, '{"key": "a", "buildkit_flavor": "b", "memory_stall_s": 0}')
    assert len(str(caught.value).split("; ")) == 4


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        load(tmp_path, '{"listen": "[::]:1"' + " " * MAX_SETTINGS_BYTES + "}")
    with pytest.raises(SettingsError):
        load_settings(str(tmp_path / "none"))
