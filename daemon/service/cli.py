"""The command line. It parses arguments, calls one function for each command, and turns its result into
messages and an exit code. It must never do the work itself."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import get_args

import click
from pydantic import ValidationError

from bentpipe.config.accounts import ScopeName, TokenSection
from bentpipe.config.load import ConfigErrors
from bentpipe.config.sources import folder_of
from bentpipe.config.units import parse_duration_s
from bentpipe.daemon.service.ca_command import ca
from bentpipe.daemon.service.command_line import (
    CONFIG_PATH,
    EXIT_CONFIG,
    planes_option,
    takes_config,
    telling_mistakes,
)
from bentpipe.daemon.service.init_command import init
from bentpipe.daemon.service.installed import read_operators_config, service_of
from bentpipe.daemon.service.keeper_command import keeper
from bentpipe.daemon.service.sat_command import completion, sat, top
from bentpipe.daemon.service.store_command import store
from bentpipe.daemon.service.token import hash_token, new_token
from bentpipe.daemon.service.why_command import why

DEMO_EXTRA = ("grpc", "trustme")
"""Modules that only the demo needs: an installation has them with `bentpipe[demo]`."""

store_config = takes_config("The configuration, which says where the store is.")
"""The option of every command that works on the store and has no other argument."""

store_config_and_name = takes_config("The configuration, which says where the store is.", positional=False)
"""The same for commands whose argument is a name."""
SCOPES = get_args(ScopeName)


class Duration(click.ParamType[float, object]):
    """Seconds, written as in the configuration."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click.ParamType."""
        try:
            return parse_duration_s(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bentpipe")
def main() -> None:
    """Routes gRPC build traffic to satellites that sleep while nobody builds."""


for command in (init, sat, top, ca, store, completion, keeper, why):
    main.add_command(command)


@main.command()
@takes_config("The configuration file.", installed=False)
@click.option(
    "--last-good",
    "use_last_good",
    is_flag=True,
    help="If the file has mistakes, start with the configuration of the last start, kept in $STATE_DIRECTORY.",
)
@click.option(
    "--keeper",
    "keeper_socket",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The socket of a `bentpipe keeper`, to which local satellites are left at the end. By default the daemon starts "
    "one for itself, and stops it and the satellites at the end.",
)
@planes_option("With a data plane that has a unit of its own, ")
def serve(config_path: Path, keeper_socket: Path | None, planes: Path | None, *, use_last_good: bool) -> None:
    """Run the daemon until SIGTERM. SIGUSR2 ends it too, and leaves local satellites and connections to the next one.

    In a terminal it starts its data plane by itself, or finds the one that an earlier daemon has left. `bentpipe check` says
    where connections live.

    Exit codes: 0 drained, 2 wrong configuration or a port that is taken, 3 drained but connections were cut.
    """
    from bentpipe.daemon.service.serve import run_serve
    from bentpipe.native.tls import TlsError

    try:
        sys.exit(run_serve(config_path, keeper_socket, planes, use_last_good=use_last_good))
    except (ConfigErrors, OSError, TlsError) as exc:
        click.echo(str(exc), err=True)
        sys.exit(EXIT_CONFIG)


@main.command()
@takes_config("The configuration file of `bentpipe serve`.", installed=False)
@planes_option()
def dataplane(config_path: Path, planes: Path | None) -> None:
    """Run the process that has the connections, until SIGTERM or until the control plane lets it drain.

    `bentpipe serve` starts it by itself if none runs, except under systemd. If another one runs already with this
    configuration, the new one takes the listening sockets, and the other one ends with its last connection.

    Exit codes: as those of `serve`.
    """
    from bentpipe.daemon.service.plane_process import run_data_plane
    from bentpipe.native.tls import TlsError

    try:
        sys.exit(run_data_plane(config_path, planes))
    except (ConfigErrors, OSError, TlsError) as exc:
        click.echo(str(exc), err=True)
        sys.exit(EXIT_CONFIG)


@main.command()
@takes_config("The configuration file.")
def check(config_path: Path) -> None:
    """Report every mistake in a configuration file at once, and whether `serve` could start with it here; start nothing."""
    run_check(config_path)


def run_check(config_path: Path) -> None:
    """Print what is wrong. Ends with EXIT_CONFIG if `serve` would not start."""
    from bentpipe.daemon.connections.descriptors import hard_limit
    from bentpipe.daemon.service.accounts import check_signing_key
    from bentpipe.daemon.service.descriptors import share_out
    from bentpipe.daemon.service.form_here import form_here
    from bentpipe.daemon.service.preflight import find_concerns

    try:
        loaded = read_operators_config(config_path)
        config = loaded.config
        share_out(config, hard_limit())
        check_signing_key(config)
    except ConfigErrors as exc:
        click.echo(str(exc), err=True)
        sys.exit(EXIT_CONFIG)
    except OSError as exc:  # TooFewDescriptors, or a file that is not a key
        click.echo(f"{config_path}: {exc}", err=True)
        sys.exit(EXIT_CONFIG)
    service = service_of(config_path)
    concerns = find_concerns(config, service, config_path)
    for concern in concerns:
        place = loaded.merged.place(concern.where)
        click.echo(f"{place}: {dataclasses.replace(concern, where=place.where)}", err=True)
    if any(concern.fatal for concern in concerns):
        sys.exit(EXIT_CONFIG)
    more = f", with {len(loaded.texts.more)} files of {folder_of(config_path)}" if loaded.texts.more else ""
    click.echo(f"{config_path}: fine: {len(config.listener)} listeners, {len(config.satellite)} satellites{more}")
    click.echo(form_here(config, config_path, service).words)


@main.group()
def token() -> None:
    """Make tokens, for the configuration or in the store."""


@token.command("new")
@click.option("--name", default="NAME", show_default=True, help="The principal's name in logs.")
@click.option("--grant", "grants", multiple=True, help="ORG/NAME, ORG/PREFIX* or ORG/*; may be repeated.")
def token_new(name: str, grants: tuple[str, ...]) -> None:
    """Print a new token, once, and the section for the configuration that stores its hash."""
    made = new_token()
    try:
        section = TokenSection(name=name, hash=hash_token(made), grants=grants or ("ORG/NAME",))
    except ValidationError as exc:
        raise click.UsageError("; ".join(str(error["msg"]) for error in exc.errors())) from exc
    click.echo(f"token (shown once; give it to the client as satellite_token):\n  {made}\n")
    click.echo("section for the configuration:\n[[token]]")
    click.echo(f"name = {json.dumps(section.name)}\nhash = {json.dumps(section.hash)}")
    click.echo(f"grants = {json.dumps(section.grants)}")


@token.command("add")
@store_config
@click.option("--name", required=True, help="The principal's name in logs.")
@click.option(
    "--grant", "grants", multiple=True, required=True, help="ORG/NAME, ORG/PREFIX* or ORG/*; may be repeated."
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=("use",),
    show_default=True,
    help="What it may do; manage includes use. May be repeated.",
)
@click.option("--principal", help="Whose token it is, for limits and logs; by default it has the token's name.")
@click.option("--expires", "expires_s", type=Duration(), help='After how long it ends: "90d", "12h". By default never.')
def token_add(
    config_path: Path,
    name: str,
    grants: tuple[str, ...],
    scopes: tuple[str, ...],
    principal: str | None,
    expires_s: float | None,
) -> None:
    """Make a token, print it once and keep its hash in the store; running daemons take it without a restart."""
    from bentpipe.daemon.service.tokens import TokenWish, run_token_add

    with telling_mistakes():
        run_token_add(config_path, TokenWish(name, grants, scopes, principal, expires_s))


@token.command("list")
@store_config
def token_list(config_path: Path) -> None:
    """Print every token: name, source, grants, scopes, end, principal."""
    from bentpipe.daemon.service.tokens import run_token_list

    with telling_mistakes():
        run_token_list(config_path)


@token.command("revoke")
@store_config_and_name
@click.option("--cut", is_flag=True, help="Also cut the connections that it has opened, on every host of the fleet.")
@click.argument("name")
def token_revoke(config_path: Path, name: str, *, cut: bool) -> None:
    """Delete a token from the store. Without --cut, connections that it has opened stay."""
    from bentpipe.daemon.service.tokens import run_token_revoke

    with telling_mistakes():
        run_token_revoke(config_path, name, cut=cut)


@main.group()
def oidc() -> None:
    """List and revoke what CI jobs get by the rules of the configuration."""


@oidc.command("rules")
@takes_config("The configuration, which has the rules and the store.")
def oidc_rules(config_path: Path) -> None:
    """Print every rule: name, issuer, claims, grants, and whether it is revoked."""
    from bentpipe.daemon.service.oidc import run_rule_list

    with telling_mistakes():
        run_rule_list(config_path)


@oidc.command("revoke")
@takes_config("The configuration, which has the rules and the store.")
@click.option(
    "--rule", help="Refuse all that was given out by this rule, and give out no more until it is allowed again."
)
@click.option("--exchange", "exchange_id", help="Refuse what one job got; the log has the id of each exchange.")
@click.option("--cut", is_flag=True, help="Also cut the connections that it has opened, on every host of the fleet.")
def oidc_revoke(config_path: Path, rule: str | None, exchange_id: str | None, *, cut: bool) -> None:
    """Revoke a rule or a single exchange; running daemons know it at once."""
    from bentpipe.daemon.service.oidc import run_exchange_revoke, run_rule_revoke

    with telling_mistakes():
        if rule is not None and exchange_id is None:
            run_rule_revoke(config_path, rule, cut=cut)
        elif exchange_id is not None and rule is None:
            run_exchange_revoke(config_path, exchange_id, cut=cut)
        else:
            raise click.UsageError("give one of --rule and --exchange")


@oidc.command("allow")
@store_config
@click.option("--rule", required=True, help="A rule that was revoked.")
def oidc_allow(config_path: Path, rule: str) -> None:
    """Let a rule give out tokens again. What it gave out before stays refused."""
    from bentpipe.daemon.service.oidc import run_rule_allow

    with telling_mistakes():
        run_rule_allow(config_path, rule)


@main.command()
@click.option("--ci", is_flag=True, required=True, help="Exchange the CI's own OIDC token for this job.")
@click.option(
    "--server",
    envvar="EARTHLY_SERVER_ADDRESS",
    required=True,
    show_envvar=True,
    help="Of an edge host: https://HOST:PORT.",
)
@click.option("--audience", default="bentpipe", show_default=True, help="As [[oidc_issuer]] says it.")
@click.option(
    "--ca", type=CONFIG_PATH, envvar="SSL_CERT_FILE", help="The authority that signs the server's certificate, in PEM."
)
@click.option("--env-file", type=CONFIG_PATH, help="Add EARTHLY_TOKEN=… to this file instead of printing the token.")
def login(server: str, audience: str, ca: Path | None, env_file: Path | None, *, ci: bool) -> None:
    """Get a token for this CI job, once for each job; it lasts as long as the job may."""
    from bentpipe.daemon.service.ci_login import run_ci_login

    with telling_mistakes():
        run_ci_login(server, audience, ca, env_file)


@main.group()
def org() -> None:
    """Make and revoke orgs of the store. An org of the configuration needs no row there; it can be revoked by one."""


@org.command("add")
@store_config_and_name
@click.argument("name")
def org_add(config_path: Path, name: str) -> None:
    """Make an org, or allow one again that was revoked."""
    from bentpipe.daemon.service.orgs import run_org_add

    with telling_mistakes():
        run_org_add(config_path, name)


@org.command("list")
@store_config
def org_list(config_path: Path) -> None:
    """Print every org: name, source, and whether it is revoked."""
    from bentpipe.daemon.service.orgs import run_org_list

    with telling_mistakes():
        run_org_list(config_path)


@org.command("revoke")
@store_config_and_name
@click.option("--cut", is_flag=True, help="Cut the connections to its satellites, too, on every host of the fleet.")
@click.argument("name")
def org_revoke(config_path: Path, name: str, *, cut: bool) -> None:
    """Let no credential do anything in an org until it is added again. Nothing of it is deleted."""
    from bentpipe.daemon.service.orgs import run_org_revoke

    with telling_mistakes():
        run_org_revoke(config_path, name, cut=cut)


@main.command()
@takes_config("The configuration, which says where the daemon's socket is.", required=False)
@click.option("--principal", help="Cut the connections of this token or certificate.")
@click.option("--satellite", help="Cut the connections to this satellite, ORG/NAME.")
def cut(config_path: Path | None, principal: str | None, satellite: str | None) -> None:
    """Cut live connections through the daemon of this host. A client may connect again at once."""
    from bentpipe.daemon.service.cutting import run_cut

    with telling_mistakes():
        run_cut(config_path, principal, satellite)


@main.command()
@takes_config("The configuration, which says where the daemon's socket is.", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what would change, and what cannot change in a running daemon.")
def reload(config_path: Path | None, *, dry_run: bool) -> None:
    """Have this host's daemon take over its configuration as it is in the files now, and wait for the verdict.

    All of it is taken over, or nothing. Open connections stay. Exit codes: 0 done, 2 nothing has changed.
    """
    from bentpipe.daemon.service.reload_command import run_reload

    with telling_mistakes():
        run_reload(config_path, dry_run=dry_run)


@main.command("install-certificate")
@click.option(
    "--certificate",
    "certificates",
    type=CONFIG_PATH,
    multiple=True,
    required=True,
    help="The certificate and its chain, leaf first, in PEM; may be repeated for a chain in a file of its own.",
)
@click.option("--key", type=CONFIG_PATH, required=True, help="Its private key, in PEM.")
@click.option("--to", type=CONFIG_PATH, required=True, help="The file that the configuration names as both.")
@click.option("--passphrase-file", type=CONFIG_PATH, help="Has the passphrase of the key, as exports of AWS need it.")
def install_certificate(certificates: tuple[Path, ...], key: Path, to: Path, passphrase_file: Path | None) -> None:
    """Put a renewed certificate and its key into one file, in one step, after a check that they belong together."""
    from bentpipe.daemon.service.install_certificate import run_install

    with telling_mistakes():
        run_install(certificates, key, to, passphrase_file)


@main.command()
@takes_config("Look at this configuration's certificates, too.", positional=False, required=False)
@click.option("--satellite", is_flag=True, help="This machine is a satellite: check that it is what was rendered.")
def doctor(config_path: Path | None, *, satellite: bool) -> None:
    """Print what this machine has and lacks, one line each, with the remedy.

    Exit codes: 0 nothing is missing that is needed, 1 something is, 2 with --satellite: this machine is not a satellite.
    """
    from bentpipe.daemon.image.programs.doctor import main as examine_satellite
    from bentpipe.daemon.service.doctor import run_doctor

    sys.exit(examine_satellite() if satellite else run_doctor(config_path))


@main.command()
@takes_config("The configuration, which has the prices and says where the ledger is.", required=False)
@click.option("--since", default="30d", show_default=True, help='"24h" ago, or a date or time (UTC).')
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--svg", type=CONFIG_PATH, help="Write the timeline as a picture.")
@click.option("--png", type=CONFIG_PATH, help="The same as PNG; needs Pillow.")
def report(config_path: Path | None, since: str, as_json: bool, svg: Path | None, png: Path | None) -> None:
    """Print which satellite was awake for how long, what that cost and saved, and how long wakes took."""
    from bentpipe.daemon.service.report import run_report

    with telling_mistakes():
        run_report(config_path, since, as_json=as_json, svg=svg, png=png)


@main.command()
@click.option("--ec2", is_flag=True, help="Use an emulator of EC2 as the cloud.")
def demo(ec2: bool) -> None:
    """Run the whole path on this machine, with real gRPC peers and without a cloud. It ends by itself."""
    try:
        from bentpipe.daemon.demo.ec2_story import run_ec2_demo
        from bentpipe.daemon.demo.story import run_demo
    except ModuleNotFoundError as exc:
        if exc.name not in DEMO_EXTRA:
            raise
        click.echo(f"the demo needs {exc.name}, which is not installed: pip install 'bentpipe[demo]'", err=True)
        sys.exit(EXIT_CONFIG)
    sys.exit(run_ec2_demo() if ec2 else run_demo())


if __name__ == "__main__":
    main()
