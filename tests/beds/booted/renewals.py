"""Renewals of the daemon's certificate as hosts do them: by certbot, and of what AWS Certificate Manager exports."""

from beds.booted.acme import DIRECTORY, acme_server
from beds.booted.story import DEADLINE_S, FILE, Story, begun, ended

NAME = "edge.example.com"
ONE_FILE = "/etc/bentpipe/tls.pem"
"""The key and its certificate."""
HOOKS = "/etc/letsencrypt/renewal-hooks/deploy"
EXPORTED = """
cd /root
openssl pkey -in exported-key.pem -aes256 -passout file:passphrase -out key.pem
bentpipe install-certificate --certificate cert.pem --certificate chain.pem --key key.pem \\
    --passphrase-file passphrase --to $1 && systemctl reload bentpipe
"""
"""As docs/certificates.md says."""


def use_one_file(story: Story, unit: str) -> None:
    """Give the unit that has the connections the credential `tls.pem`, and have the configuration name it twice."""
    host = story.host
    drop_in = f"[Service]\nLoadCredential=\nLoadCredential=tls.pem:{ONE_FILE}\n"
    host.put(f"/etc/systemd/system/{unit}.d/certificate.conf", drop_in.encode())
    host.run('sed -Ei "$1" "$2"', r's#^(certificate|key) = .*#\1 = "credential:tls.pem"#', FILE)
    host.run("systemctl daemon-reload")


def renew_by_certbot(story: Story, program: str, unit: str, build_s: float) -> None:
    """A real certbot, a real ACME server (`program`), the hook of the package: the steps of docs/certificates.md.

    A build goes on through the renewal. `unit` has the connections.
    """
    host = story.host
    certbot = f"REQUESTS_CA_BUNDLE=/root/acme-ca.pem certbot --non-interactive --quiet --server {DIRECTORY}"
    with acme_server(host, story.folder, program) as issuer:
        host.run(
            f"{certbot} certonly --standalone --agree-tos --register-unsafely-without-email -d {NAME}",
            deadline_s=DEADLINE_S,
        )
        host.run(f"install -D /usr/share/bentpipe/certbot-deploy-hook {HOOKS}/bentpipe")
        use_one_file(story, unit)
        host.run(f"RENEWED_LINEAGE=/etc/letsencrypt/live/{NAME} {HOOKS}/bentpipe")
        first = story.shown_serial(issuer, NAME)
        running = begun(story.build(build_s, ca=issuer, name=NAME))
        host.run(f"{certbot} renew --force-renewal --no-random-sleep-on-renew", deadline_s=DEADLINE_S)
        assert story.shown_serial(issuer, NAME) not in {first, ""}
        assert ended(running) == "awake"


def run_hook(story: Story, before: str = "") -> None:
    """Issue a certificate for localhost, and run certbot's hook as certbot does, after the shell command `before`."""
    chain, key = story.issue()
    story.host.put("/root/renewed/fullchain.pem", chain)
    story.host.put("/root/renewed/privkey.pem", key, 0o600)
    hook = "RENEWED_LINEAGE=/root/renewed /usr/share/bentpipe/certbot-deploy-hook"
    story.host.run(f"{before}; {hook}" if before else hook, deadline_s=DEADLINE_S)


def install_as_acm_exports(story: Story) -> None:
    """Issue a certificate for localhost by an authority below the story's, and install it from an encrypted key."""
    issued = story.authority.create_child_ca().issue_cert("localhost")
    leaf, *chain = (each.bytes() for each in issued.cert_chain_pems)
    assert chain
    for name, data in (("cert.pem", leaf), ("chain.pem", b"".join(chain)), ("passphrase", b"of the export\n")):
        story.host.put(f"/root/{name}", data, 0o600)
    story.host.put("/root/exported-key.pem", issued.private_key_pem.bytes(), 0o600)
    story.host.run(EXPORTED, ONE_FILE, deadline_s=DEADLINE_S)
