"""Follows the pages on a host with the package and systemd: runs their blocks that are marked `systemd`, in their order.

`tests/test_docs_commands.py` runs the other blocks.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.booted.acme import DIRECTORY, acme_server, pebble
from beds.booted.machine import Booted
from beds.booted.package import built_package, installed_root
from beds.booted.root import SUITES, booted_root
from beds.booted.story import FILE, Story
from beds.pages.list import INSTALLED_PAGES, installed_blocks
from beds.pages.shell import script_of
from beds.peers.builds import Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

PAGE_DEADLINE_S = 300.0
RULE = """
[[oidc_issuer]]
name = "github"
issuer = "https://token.actions.githubusercontent.com"
audience = "bentpipe"
[[oidc_rule]]
name = "acme-main"
issuer = "github"
claims = { repository_id = "123456" }
grants = ["acme/builder"]
job_life = "2h"
"""
"""What docs/accounts.md shows above its commands."""


def running_service(host: Booted, package: Path, folder: Path) -> None:
    story = Story(host, package, folder)
    story.configure()
    host.put("/etc/bentpipe/bentpipe.d/10-ci.toml", RULE.encode())
    story.start()


@contextlib.contextmanager
def bed_of(page: str, suite: str, folder: Path) -> Iterator[Booted]:
    """A host that is as far as the page's reader is. Raises Missing."""
    package = built_package(suite)
    with contextlib.ExitStack() as stack:
        if page == "packages.md":
            host = stack.enter_context(Booted(booted_root(suite)))
            host.put(f"/root/dist/{package.name}", package.read_bytes())
        elif page == "certificates.md":
            program = pebble()
            host = stack.enter_context(Booted(installed_root(suite)))
            stack.enter_context(acme_server(host, folder, program))
            # Without a terminal certbot waits up to eight minutes before it renews.
            settings = f"server = {DIRECTORY}\nnon-interactive = true\nno-random-sleep-on-renew = true\n"
            host.put("/etc/letsencrypt/cli.ini", settings.encode())
        else:
            host = stack.enter_context(Booted(installed_root(suite)))
            running_service(host, package, folder)
        yield host


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("page", INSTALLED_PAGES)
def test_the_commands_of_a_page_work_on_an_installed_host(page: str, suite: str, tmp_path: Path) -> None:
    try:
        with bed_of(page, suite, tmp_path) as host:
            script = "cd /root; export REQUESTS_CA_BUNDLE=/root/acme-ca.pem\n" + script_of(page, installed_blocks(page))
            host.put("/root/page.sh", script.encode())
            said = host.run("bash -euo pipefail /root/page.sh", deadline_s=PAGE_DEADLINE_S)
            if page == "certificates.md":
                assert "reloaded" in said, said
                assert "tls.pem" in host.run(f"cat {FILE}")
    except Missing as exc:
        pytest.skip(str(exc))
