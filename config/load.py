"""Reads a configuration and reports every mistake in it at once, each with its path. It must never start anything."""

import dataclasses
import difflib
import json
import os
import shutil
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from bentpipe.config.accounts import ID_CLAIMS
from bentpipe.config.keys import keys_of
from bentpipe.config.model import Config, MachineSection
from bentpipe.config.sources import ConfigErrors, ConfigProblem, Merged, Texts

__all__ = ["ConfigErrors", "ConfigProblem", "LoadedConfig", "load_config", "parse_config"]

CREDENTIAL_PREFIX = "credential:"
"""Marks a path as a systemd credential: a file of that name in $CREDENTIALS_DIRECTORY (systemd.exec(5))."""
NO_CREDENTIALS = "; systemd gives credentials to the service alone, by LoadCredential= in its unit: else give a path"
NEAR = 0.7
"""How much a key must be alike a known one for that to be suggested (difflib's ratio)."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration with the texts that it was made of."""

    config: Config
    texts: Texts
    merged: Merged


def load_config(
    path: Path, *, check_files: bool = True, credentials: Mapping[str, Path] = types.MappingProxyType({})
) -> Config:
    """Read and check `path` and the files of its folder. Raises ConfigErrors with every mistake.

    Without `check_files`, the files that it names may be missing: `bentpipe report` does not need to read the keys.
    `credentials` are files by the name of a systemd credential, for a process to which systemd has not given them.
    """
    return parse_config(Texts.read(path), check_files=check_files, credentials=credentials).config


def parse_config(
    texts: Texts,
    *,
    check_files: bool = True,
    credentials: Mapping[str, Path] = types.MappingProxyType({}),
    instead: Mapping[str, Path] = types.MappingProxyType({}),
    keys_elsewhere: bool = False,
) -> LoadedConfig:
    """Check texts that were read. Raises ConfigErrors with every mistake.

    `instead` are files by the name of a systemd credential that count instead of those that systemd has given. With
    `keys_elsewhere` another unit reads the files of listeners and satellites, and this process need not even see them.
    """
    merged = texts.merged()
    try:
        config = Config.model_validate(_resolve_credentials(merged.raw, credentials, instead))
    except ValidationError as exc:
        told = sorted({_problem(error) for error in _first_causes(exc)})
        raise ConfigErrors(texts.path, [merged.problem(each.where, each.message) for each in told]) from exc
    problems = sorted(
        {
            *_duplicates(config, merged),
            *_unknown_names(config),
            *_unverified_certificates(config),
            *_unfit_rules(config),
            *_unfit_authority(config),
            *(_missing_files(config, keys_elsewhere=keys_elsewhere) if check_files else ()),
        }
    )
    if problems:
        raise ConfigErrors(texts.path, [merged.problem(each.where, each.message) for each in problems])
    return LoadedConfig(config, texts, merged)


def _resolve_credentials(value: object, known: Mapping[str, Path], instead: Mapping[str, Path]) -> object:
    if isinstance(value, Mapping):
        return {key: _resolve_credentials(item, known, instead) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve_credentials(item, known, instead) for item in value]
    if isinstance(value, str) and value.startswith(CREDENTIAL_PREFIX):
        name, folder = value.removeprefix(CREDENTIAL_PREFIX), os.environ.get("CREDENTIALS_DIRECTORY", "")
        if name in instead:
            return str(instead[name])
        if folder:
            return str(Path(folder) / name)
        return str(known.get(name, value))
    return value


def _first_causes(exc: ValidationError) -> Iterator[Mapping[str, object]]:
    """Leave out "too few items" if the items are there and wrong: pydantic counts only the right ones."""
    errors = exc.errors()
    for error in errors:
        at = error["loc"]
        if error["type"] == "too_short" and any(each["loc"][: len(at)] == at != each["loc"] for each in errors):
            continue
        yield dict(error)


def _problem(error: Mapping[str, object]) -> ConfigProblem:
    location = error["loc"]
    where = ""
    for part in location if isinstance(location, tuple) else ():
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    return ConfigProblem(where, _words(error, location if isinstance(location, tuple) else ()))


def _words(error: Mapping[str, object], location: tuple[int | str, ...]) -> str:
    message, found = str(error["msg"]).removeprefix("Value error, "), error["input"]
    match error["type"]:
        case "value_error":
            return message
        case "extra_forbidden":
            return "unknown key" + _did_you_mean(str(location[-1]), keys_of(Config, location[:-1]))
        case "missing":
            return "missing"
        case "tuple_type" if isinstance(found, str):
            return f"expected a list: {json.dumps(found.split() or [''])} (got {found!r})"
        case "string_pattern_mismatch":
            context = error.get("ctx")
            form = context.get("pattern") if isinstance(context, Mapping) else ""
            return f"{found!r} is not valid: expected the form {form}"
        case _:
            return f"{message} (got {found!r})"


def _did_you_mean(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
    return f"; did you mean {near[0]!r}?" if near else ""


def _duplicates(config: Config, merged: Merged) -> Iterator[ConfigProblem]:
    seen: dict[tuple[str, object], str] = {}
    named: list[tuple[str, tuple[str, object]]] = [
        *((f"satellite[{i}]", ("satellite", f"{s.org}/{s.name}")) for i, s in enumerate(config.satellite)),
        *(
            (f"satellite[{i}].ec2.instance_id", ("instance", s.ec2.instance_id))
            for i, s in enumerate(config.satellite)
            if s.ec2 is not None and s.ec2.instance_id is not None
        ),
        *((f"token[{i}].name", ("token", t.name)) for i, t in enumerate(config.token)),
        *((f"machine_type[{i}]", ("machine type", (m.size, m.platform))) for i, m in enumerate(config.machine_type)),
        *((f"token[{i}].hash", ("hash", t.hash)) for i, t in enumerate(config.token)),
        *((f"certificate[{i}].name", ("certificate", c.name)) for i, c in enumerate(config.certificate)),
        *((f"certificate[{i}]", ("shown", c.shown)) for i, c in enumerate(config.certificate)),
        *((f"oidc_issuer[{i}].name", ("issuer name", o.name)) for i, o in enumerate(config.oidc_issuer)),
        *((f"oidc_issuer[{i}].issuer", ("issuer", o.issuer)) for i, o in enumerate(config.oidc_issuer)),
        *((f"oidc_rule[{i}].name", ("rule", r.name)) for i, r in enumerate(config.oidc_rule)),
        *(
            (f"listener[{i}]", ("listener", listener.address or listener.systemd))
            for i, listener in enumerate(config.listener)
            if listener.address is None or listener.address[1]
        ),
    ]
    for where, identity in named:
        first = seen.setdefault(identity, where)
        if first != where:
            yield ConfigProblem(where, merged.same_as(where, first))


def _unknown_names(config: Config) -> Iterator[ConfigProblem]:
    orgs = {satellite.org for satellite in config.satellite}
    granted = [
        *((f"token[{i}].grants", token.grants) for i, token in enumerate(config.token)),
        *((f"certificate[{i}].grants", certificate.grants) for i, certificate in enumerate(config.certificate)),
        *((f"oidc_rule[{i}].grants", rule.grants) for i, rule in enumerate(config.oidc_rule)),
    ]
    for where, grants in granted if not config.makes_satellites else ():
        for grant in grants:
            if grant.partition("/")[0] not in orgs:
                yield ConfigProblem(where, f"{grant!r} is for an org without a satellite")
    for org in config.budget.org:
        if org not in orgs and not config.makes_satellites:
            yield ConfigProblem(f"budget.org.{org}", "an org that has no satellite")
    names = {f"{satellite.org}/{name}" for satellite in config.satellite for name in (satellite.name, "*")}
    for priced in config.prices.satellite if config.prices else ():
        if priced not in names and not config.makes_satellites:
            yield ConfigProblem(f"prices.satellite.{priced}", "expected ORG/NAME or ORG/* of a satellite in this file")


def _unverified_certificates(config: Config) -> Iterator[ConfigProblem]:
    if config.certificate and not any(listener.tls and listener.tls.client_ca for listener in config.listener):
        yield ConfigProblem("certificate", "no listener has a client_ca, so no client certificate is ever asked for")


def _unfit_rules(config: Config) -> Iterator[ConfigProblem]:
    issuers = {issuer.name: issuer for issuer in config.oidc_issuer}
    for index, rule in enumerate(config.oidc_rule):
        issuer = issuers.get(rule.issuer)
        if issuer is None:
            yield ConfigProblem(f"oidc_rule[{index}].issuer", f"there is no [[oidc_issuer]] named {rule.issuer!r}")
        elif not ID_CLAIMS.union(issuer.id_claims).intersection(rule.claims):
            known = ", ".join(sorted(ID_CLAIMS.union(issuer.id_claims)))
            words = f"one claim must be an id that is never given to another owner, since names can be: one of {known}"
            yield ConfigProblem(f"oidc_rule[{index}].claims", words)
    if config.oidc_rule and config.store.kind == "none":
        yield ConfigProblem("oidc_rule", 'needs a store, and [store] kind is "none"')
    if config.machine_type and config.store.kind == "none":
        yield ConfigProblem("machine_type", 'needs a store, and [store] kind is "none"')
    if config.registration is not None and config.store.kind == "none":
        yield ConfigProblem("registration", 'needs a store, and [store] kind is "none"')


def _unfit_authority(config: Config) -> Iterator[ConfigProblem]:
    for where, machine in _machines(config):
        if machine.has_issued_tls and config.satellite_ca is None:
            yield ConfigProblem(
                f"{where}.tls.issued", "needs a [satellite_ca] section, which says where machines enrol"
            )
        if machine.has_issued_tls and not machine.launches:
            words = (
                "only a machine that the daemon launches can get a certificate: give a launch_template, or ca instead"
            )
            yield ConfigProblem(f"{where}.tls.issued", words)
    if config.satellite_ca is None:
        return
    if config.store.kind == "none":
        yield ConfigProblem("satellite_ca", 'needs a store, and [store] kind is "none"')
    if config.store.kind == "dynamodb" and config.satellite_ca.file is None:
        words = "hosts that share a store need the same authority: `bentpipe ca new` makes a file; give it to each host"
        yield ConfigProblem("satellite_ca.file", words)


def _machines(config: Config) -> list[tuple[str, MachineSection]]:
    """All satellites and machine types, with their places in the file."""
    return [
        *((f"satellite[{index}]", machine) for index, machine in enumerate(config.satellite)),
        *((f"machine_type[{index}]", machine) for index, machine in enumerate(config.machine_type)),
    ]


def _missing_files(config: Config, *, keys_elsewhere: bool) -> Iterator[ConfigProblem]:
    files: list[tuple[str, Path | None]] = []
    # A data plane of its own process reads these and says what it cannot read.
    looks = not keys_elsewhere and config.daemon.data_plane != "process"
    for index, listener in enumerate(config.listener if looks else ()):
        if listener.tls is not None:
            for key in ("certificate", "key", "client_ca", "client_crl"):
                files.append((f"listener[{index}].tls.{key}", getattr(listener.tls, key)))
            for number, more in enumerate(listener.tls.more):
                files.append((f"listener[{index}].tls.more[{number}].certificate", more.certificate))
                files.append((f"listener[{index}].tls.more[{number}].key", more.key))
    files.append(("accounts.signing_key", config.accounts.signing_key))
    files += [(f"oidc_issuer[{index}].ca", issuer.ca) for index, issuer in enumerate(config.oidc_issuer)]
    if config.satellite_ca is not None:
        files.append(("satellite_ca.file", config.satellite_ca.file))
    for table, satellite in _machines(config):
        if satellite.tls is not None and looks:
            for key in ("ca", "certificate", "key"):
                files.append((f"{table}.tls.{key}", getattr(satellite.tls, key)))
        if satellite.process is not None:
            where = f"{table}.process"
            directory = satellite.process.directory
            if directory is not None and not directory.is_dir():
                yield ConfigProblem(f"{where}.directory", f"{directory} is not a directory")
            if unfit := _unfit_program(satellite.process.command[0]):
                yield ConfigProblem(f"{where}.command", unfit)
    for where, path in files:
        if path is None:
            continue
        try:
            with path.open("rb"):
                pass
        except OSError as exc:
            hint = NO_CREDENTIALS if str(path).startswith(CREDENTIAL_PREFIX) else ""
            yield ConfigProblem(where, f"cannot read {path}: {exc.strerror}{hint}")


def _unfit_program(program: str) -> str:
    """Say why a satellite's program cannot be run; empty if it can."""
    if shutil.which(program) is not None:
        return ""
    path = Path(program)
    if "/" not in program:
        return f"program {program!r} is in no folder of PATH: install it, or write its whole path"
    if path.is_dir():
        return f"{program!r} is a directory, not a program"
    if path.exists():
        return f"{program!r} is not executable by this user; chmod +x may be missing"
    return f"program {program!r}: there is no such file"
