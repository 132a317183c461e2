"""Commands beside the installed service: they use its store and its keys, wherever systemd has put them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from beds.issued import Issued
from beds.pages.troubleshooting import pattern_of
from beds.programs import BENTPIPE
from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.form_here import form_here
from bentpipe.daemon.service.installed import find_service, load_operators_config, service_of
from bentpipe.daemon.service.preflight import find_concerns

UNITS = Path(__file__).parents[3] / "systemd"
SHIPPED = UNITS / "bentpipe.service"
CONFIG = """
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
certificate = "{folder}/tls.pem"
key = "credential:tls.key"
[[satellite]]
org = "acme"
name = "ci"
[satellite.process]
command = ["true", "{{port}}"]
"""


LOCAL = """
[[listener]]
address = "127.0.0.1:0"
[[satellite]]
org = "acme"
name = "ci"
[satellite.process]
command = ["true", "{port}"]
"""


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's shell has none of what systemd gives; what a test sets is taken back."""
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def concerns_of(config: Path, folder: Path) -> list[Concern]:
    """What `bentpipe check` finds, if the units are in this folder."""
    loaded = load_operators_config(config, check_files=False, folders=[folder])
    return find_concerns(loaded, service_of(config, [folder]))


def unit(folder: Path, text: str, name: str = "bentpipe.service") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_shipped_unit(tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path)
    service = find_service([tmp_path])
    assert service is not None
    assert service.config_path == Path("/etc/bentpipe/bentpipe.toml")
    assert service.credentials == {"tls.key": Path("/etc/bentpipe/tls.key")}
    assert service.state_directory == Path("/var/lib/bentpipe")
    assert service.runtime_directory == Path("/run/bentpipe")


def test_the_shipped_units_of_two_processes(tmp_path: Path) -> None:
    """The data plane has the key. A command that reads the configuration finds it there."""
    for name in ("bentpipe.service", "bentpipe-dataplane@.service"):
        shutil.copy(UNITS / "process" / name, tmp_path)
    unit(
        tmp_path,
        "[Service]\nLoadCredential=\nLoadCredential=tls.pem:/etc/tls.pem\n",
        "bentpipe-dataplane@.service.d/a.conf",
    )
    service = find_service([tmp_path])
    assert service is not None
    assert service.has_data_plane_unit
    assert service.credentials == {"tls.pem": Path("/etc/tls.pem")}


def test_a_data_plane_unit_that_is_only_installed_counts_for_nothing(tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path)
    unit(tmp_path, "[Service]\nLoadCredential=other:/etc/other\n", "bentpipe-dataplane@.service")
    service = find_service([tmp_path])
    assert service is not None
    assert not service.has_data_plane_unit
    assert "other" not in service.credentials


FORMS = {
    "one": ("", ""),
    "two": ("After=bentpipe-dataplane@a.service\n", 'data_plane = "process"\nplanes = "/run/p"\n'),
    "inside": ("", 'data_plane = "inside"\n'),
}


@pytest.mark.parametrize(
    ("form_of_unit", "form_of_file", "words"),
    [
        ("one", "one", None),
        ("two", "two", None),
        ("one", "two", "runs one process"),
        ("two", "inside", "runs the control plane alone"),
        ("two", "one", "meet in no folder"),
    ],
)
def test_check_compares_the_file_with_the_unit(
    tmp_path: Path, form_of_unit: str, form_of_file: str, words: str | None
) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text("[daemon]\n" + FORMS[form_of_file][1] + LOCAL)
    unit(tmp_path, f"[Unit]\n{FORMS[form_of_unit][0]}[Service]\nExecStart=bentpipe serve --config {config}\n")
    found = [each for each in concerns_of(config, tmp_path) if each.where.startswith("daemon.")]
    if words is None:
        assert not found
    else:
        [only] = found
        assert words in only.message


def test_check_finds_units_that_would_not_meet(tmp_path: Path) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text('[daemon]\ndata_plane = "process"\n' + LOCAL)
    unit(tmp_path, f"[Unit]\n{FORMS['two'][0]}[Service]\nExecStart=bentpipe serve --config {config}\n")
    assert [each.where for each in concerns_of(config, tmp_path) if each.where.startswith("daemon.")] == [
        "daemon.planes"
    ]


@pytest.mark.parametrize("command", ["serve --planes /run/p --config {}", "serve --config={} --planes=/run/p"])
def test_the_units_of_two_processes_need_no_key(tmp_path: Path, command: str) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text(LOCAL)
    unit(tmp_path, f"[Unit]\n{FORMS['two'][0]}[Service]\nExecStart=bentpipe {command.format(config)}\n")
    assert not [each for each in concerns_of(config, tmp_path) if each.where.startswith("daemon.")]
    service = service_of(config, [tmp_path])
    form = form_here(load_config(config), config, service)
    assert (form.folder, form.is_external) == (Path("/run/p"), True)
    config.write_text('[daemon]\ndata_plane = "inside"\n' + LOCAL)
    [found] = [each for each in concerns_of(config, tmp_path) if each.where == "daemon.data_plane"]
    assert found.fatal


@pytest.mark.parametrize(
    ("families", "is_told"),
    [
        ("", False),
        ("RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX", False),
        ("RestrictAddressFamilies=AF_INET AF_INET6\nRestrictAddressFamilies=AF_UNIX", True),
        ("RestrictAddressFamilies=AF_INET\nRestrictAddressFamilies=", False),
        ("RestrictAddressFamilies=~AF_NETLINK", True),
        ("RestrictAddressFamilies=none", True),
        ("PrivateUsers=yes", True),
        ("PrivateUsers=identity", True),
        ("PrivateUsers=yes\nPrivateUsers=no", False),
        ("PrivateUsers=full", False),
    ],
)
@pytest.mark.parametrize("admission", ["auto", "asked"])
def test_check_says_if_the_data_plane_cannot_see_who_listens(
    tmp_path: Path, families: str, admission: str, *, is_told: bool
) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text(f'[daemon]\nadmission = "{admission}"\n{FORMS["two"][1]}{LOCAL}')
    unit(tmp_path, f"[Unit]\n{FORMS['two'][0]}[Service]\nExecStart=bentpipe serve --config {config}\n")
    unit(tmp_path, f"[Service]\n{families}\n", "bentpipe-dataplane@.service")
    found = [each for each in concerns_of(config, tmp_path) if "AF_NETLINK" in each.message]
    assert bool(found) == (is_told and admission == "auto")


def test_check_finds_programs_that_the_units_forbid(tmp_path: Path) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text(LOCAL.replace('"true"', '"/usr/bin/setpriv", "true"'))
    assert "satellite[0].process.command" not in {each.where for each in concerns_of(config, tmp_path)}
    unit(tmp_path, f"[Service]\nExecStart=bentpipe serve --config {config}\n")
    found = {each.where: each.message for each in concerns_of(config, tmp_path)}
    assert "'setpriv' would end at once" in found["satellite[0].process.command"]


CREDENTIALS = """
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
certificate = "credential:tls.pem"
key = "credential:tls.pem"
"""


def test_check_finds_a_credential_whose_file_is_missing(tmp_path: Path) -> None:
    """systemd would not start the unit, whether or not the configuration names the credential."""
    config = tmp_path / "bentpipe.toml"
    config.write_text(LOCAL)
    load = f"LoadCredential=tls.key:{tmp_path}/tls.key"
    unit(tmp_path, f"[Service]\nExecStart=bentpipe serve --config {config}\n{load}\n")
    [found] = [each for each in concerns_of(config, tmp_path) if each.where == "bentpipe.service"]
    assert found.fatal
    assert load in found.message
    assert pattern_of("the file of a unit's credential is missing").search(found.message)
    (tmp_path / "tls.key").touch()
    assert not [each for each in concerns_of(config, tmp_path) if each.where == "bentpipe.service"]


def test_check_finds_a_credential_in_the_unit_that_has_no_connections(tmp_path: Path) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text("[daemon]\n" + FORMS["two"][1] + CREDENTIALS)
    issued = Issued("edge")
    (tmp_path / "tls.pem").write_bytes(issued.key_pem() + issued.pem())
    unit(tmp_path, f"[Unit]\n{FORMS['two'][0]}[Service]\nExecStart=bentpipe serve --config {config}\n")
    load = f"[Service]\nLoadCredential=tls.pem:{tmp_path}/tls.pem\n"
    wrong = unit(tmp_path, load, "bentpipe.service.d/certificate.conf")
    unit(tmp_path, "[Service]\n", "bentpipe-dataplane@.service")
    found = {each.where: each.message for each in concerns_of(config, tmp_path)}
    assert "bentpipe-dataplane@.service.d/" in found["listener[0].tls.key"]
    assert pattern_of("a credential is in the wrong unit of two").search(found["listener[0].tls.key"])
    wrong.unlink()
    unit(tmp_path, load, "bentpipe-dataplane@.service.d/certificate.conf")
    assert "listener[0].tls.key" not in {each.where for each in concerns_of(config, tmp_path)}


def test_no_unit(tmp_path: Path) -> None:
    assert find_service([tmp_path, tmp_path / "absent"]) is None


def test_drop_ins_add_replace_and_hide(tmp_path: Path) -> None:
    first, second = tmp_path / "etc", tmp_path / "lib"
    unit(
        second,
        "[Unit]\nStateDirectory=wrong\n[Service]\n# StateDirectory=wrong\n"
        "ExecStart=/usr/bin/bentpipe serve \\\n  --config=/etc/old.toml\n"
        "LoadCredential=tls.key:/etc/old.key\nLoadCredential=inherited\nStateDirectory=bentpipe:link other\n",
    )
    unit(second, "[Service]\nStateDirectory=hidden\n", "bentpipe.service.d/10-state.conf")
    unit(first, "[Service]\nLoadCredential=tls.key:/etc/new.key\n", "bentpipe.service.d/10-state.conf")
    unit(
        second,
        "[Service]\nExecStart=\nExecStart=bentpipe serve --config '/etc/new one.toml'\n",
        "bentpipe.service.d/20.conf",
    )
    service = find_service([first, second])
    assert service is not None
    assert service.config_path == Path("/etc/new one.toml")
    assert service.credentials == {"tls.key": Path("/etc/new.key")}
    assert service.state_directory == Path("/var/lib/bentpipe")
    assert service.runtime_directory is None


@pytest.mark.parametrize(
    "text", ["", "[Service]\n", "[Service]\nExecStart='no end\n", "\0\0", "[Service]\nExecStart=--config"]
)
def test_a_unit_that_says_nothing(tmp_path: Path, text: str) -> None:
    unit(tmp_path, text)
    service = find_service([tmp_path])
    assert service is not None
    assert service.config_path is None


def test_credentials_of_the_services_own_configuration_alone(tmp_path: Path) -> None:
    config, other = tmp_path / "bentpipe.toml", tmp_path / "other.toml"
    for path in (config, other):
        path.write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "tls.pem").write_text("x")
    (tmp_path / "server.key").write_text("x")
    unit(
        tmp_path,
        f"[Service]\nExecStart=bentpipe serve --config {config}\nLoadCredential=tls.key:{tmp_path}/server.key\n"
        "StateDirectory=bp-test\n",
    )
    loaded = load_operators_config(config, folders=[tmp_path])
    tls = loaded.listener[0].tls
    assert tls is not None
    assert tls.key == tmp_path / "server.key"
    assert loaded.store.ledger_path() == Path("/var/lib/bp-test/ledger.sqlite")
    with pytest.raises(ConfigErrors, match=r"cannot read credential:tls\.key: .*LoadCredential="):
        load_operators_config(other, folders=[tmp_path])


def test_what_systemd_gave_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "bentpipe.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    unit(
        tmp_path,
        f"[Service]\nExecStart=bentpipe serve --config {config}\nLoadCredential=tls.key:/x\nStateDirectory=a\n",
    )
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/bentpipe.service")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/own")
    loaded = load_operators_config(config, check_files=False, folders=[tmp_path])
    tls = loaded.listener[0].tls
    assert tls is not None
    assert tls.key == Path("/run/credentials/bentpipe.service/tls.key")
    assert loaded.store.ledger_path() == Path("/var/lib/own/ledger.sqlite")


IN_A_NAMESPACE = """
set -e
mount -t tmpfs none /var/lib
mkdir /var/lib/bentpipe; chown 4242:4242 /var/lib/bentpipe
mkdir -p /run/systemd; mount -t tmpfs none /run/systemd; mkdir /run/systemd/system
cp "$1" /run/systemd/system/bentpipe.service
"$2" token add --config "$3" --name ci --grant 'acme/*' >/dev/null
"$2" token list --config "$3"
stat -c '%u:%g' /var/lib/bentpipe/ledger.sqlite*
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a mount namespace")
def test_a_token_is_added_beside_the_installed_service(tmp_path: Path) -> None:
    """As root, into the state directory, and the daemon's user owns what is made."""
    config = tmp_path / "bentpipe.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    made = unit(tmp_path, f"[Service]\nExecStart=bentpipe serve --config {config}\nStateDirectory=bentpipe\n")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_DIRECTORY")}
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", IN_A_NAMESPACE, "bash", made, BENTPIPE, config],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip(f"no mount namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    listed, *owners = done.stdout.splitlines()
    assert listed.startswith("ci\tstore\t")
    assert set(owners) == {"4242:4242"}
