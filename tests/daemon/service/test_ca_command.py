"""`bentpipe ca` and what `bentpipe check` says of the authority, as their users run them."""

import datetime
import subprocess
from pathlib import Path

from beds.hosts.enrolling import CONFIG, MINE, SATELLITE
from beds.programs import BENTPIPE
from bentpipe.daemon.pki.authority import new_authority
from bentpipe.daemon.pki.authority_file import keep_authority, read_authority

NOW = datetime.datetime.now(datetime.UTC)


def run(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([BENTPIPE, *arguments], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_an_authority_from_its_making_to_its_second_key(tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    assert run("ca", "new", path, "--fleet", "builders")[0] == 0
    first = read_authority(path)
    assert path.stat().st_mode & 0o777 == 0o600
    code, words = run("ca", "new", path)
    assert code == 2
    assert "rotate" in words
    assert read_authority(path).certificate == first.certificate, "an authority is not replaced by mistake"
    assert run("ca", "rotate", path)[0] == 0
    second = read_authority(path)
    assert second.roots[1:] == first.roots
    code, words = run("ca", "show", path)
    assert code == 0
    assert [line.split()[0] for line in words.splitlines()] == ["signs", "replaced", "sent"]
    assert words.count("O=builders") == 3
    assert "PRIVATE" not in words


def test_mistakes_are_told(tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.pem"
    spoiled.touch(0o600)
    spoiled.write_text("spoiled")
    for arguments in (("show", tmp_path / "none.pem"), ("show", spoiled), ("rotate", spoiled)):
        code, words = run("ca", *arguments)
        assert code == 2
        assert str(arguments[1]) in words
        assert "Traceback" not in words
    assert spoiled.read_text() == "spoiled"


def test_check_looks_at_the_authority(tmp_path: Path) -> None:
    file, config = tmp_path / "authority.pem", tmp_path / "bentpipe.toml"
    text = CONFIG.format(folder=tmp_path, port=1, life="90d").replace(
        "[satellite_ca]", f'[satellite_ca]\nfile = "{file}"'
    )
    config.write_text(text.replace("127.0.0.1:1", "127.0.0.1:0", 1) + SATELLITE.format(key=MINE))
    keep_authority(file, new_authority("test", NOW))
    code, words = run("check", config)
    assert code == 0, words
    assert "satellite_ca" not in words
    keep_authority(file, new_authority("test", NOW - datetime.timedelta(days=3600)))
    code, words = run("check", config)
    assert code == 0
    assert "bentpipe ca rotate" in words
    file.write_text("spoiled")
    code, words = run("check", config)
    assert code == 2
    assert "satellite_ca.file" in words
