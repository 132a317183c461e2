"""Failures that nobody foresaw, in a real `bentpipe serve`: they end what they belong to, and no one's build."""

import time
from pathlib import Path

import pytest

from beds.peers.edge_clients import call_once, client_of
from beds.stores.edited import edited
from bentpipe.daemon.service.token import hash_token
from bentpipe.daemon.testbed.edge_host import ORG, CloudSatellite, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

PATIENCE_S = 30.0
EC2 = '[ec2]\nregion = "eu-central-1"\nendpoint = "http://127.0.0.1:1"\nsweep = "1s"'
HOLD = 'hold_limit = "6s"'


def wait_answer(edge: EdgeHost, satellite: str, token: str, wanted: GrpcStatus) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := call_once(edge, satellite, token)[0]) is not wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


# -- credentials ------------------------------------------------------------------------------------------------------


def aws_profile(folder: Path, text: str) -> dict[str, str]:
    (folder / "aws").write_text(f"[default]\n{text}\n")
    return {
        "AWS_CONFIG_FILE": str(folder / "aws"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "",
        "AWS_PROFILE": "default",
    }


@pytest.mark.parametrize(
    "profile",
    [
        "credential_process = /nonexistent/tool",
        "credential_process = /bin/false",
        "credential_process = /bin/echo no json",
        "credential_process = /bin/echo {}",
        "role_arn = arn:aws:iam::123456789012:role/x\nweb_identity_token_file = /nonexistent/token",
        'region = "\nno such = [',
        "sso_session = nowhere\nsso_account_id = 1\nsso_role_name = x",
    ],
)
def test_missing_credentials_concern_their_satellites_alone(tmp_path: Path, profile: str) -> None:
    satellites: list[DemoSatellite | CloudSatellite] = [
        CloudSatellite("cloud", "i-0123456789abcdef0", 8372, HOLD),
        DemoSatellite("local"),
    ]
    with EdgeHost(satellites, sleep_after_s=600, settings=EC2, environment=aws_profile(tmp_path, profile)) as edge:
        build = client_of(edge, "local")
        assert build.unary("Echo", b"before") == b"before"
        status, words = call_once(edge, "cloud")
        assert status in (GrpcStatus.UNAVAILABLE, GrpcStatus.FAILED_PRECONDITION)
        assert "cloud" in words, "the reason is the provider's"
        assert "/nonexistent" not in words, "our host's files are not a client's business"
        assert build.unary("Echo", b"after") == b"after"
        build.close()
        assert edge.stop() == 0


def test_a_web_identity_file_that_goes_while_a_build_runs(tmp_path: Path) -> None:
    """Mid-run: what gave credentials at the start gives none any more."""
    tool = tmp_path / "tool"
    tool.write_text(
        "#!/bin/sh\n"
        'echo "{\\"Version\\": 1, \\"AccessKeyId\\": \\"A\\", \\"SecretAccessKey\\": \\"S\\", '
        '\\"SessionToken\\": \\"T\\", \\"Expiration\\": \\"$(date -u -d "+2 seconds" +%Y-%m-%dT%H:%M:%SZ)\\"}"\n'
    )
    tool.chmod(0o755)
    satellites: list[DemoSatellite | CloudSatellite] = [
        CloudSatellite("cloud", "i-0123456789abcdef0", 8372, HOLD),
        DemoSatellite("local"),
    ]
    with EdgeHost(
        satellites,
        sleep_after_s=600,
        settings=EC2,
        environment=aws_profile(tmp_path, f"credential_process = {tool}"),
    ) as edge:
        build = client_of(edge, "local")
        assert build.unary("Echo", b"before") == b"before"
        tool.unlink()
        time.sleep(5)  # several sweeps
        assert build.unary("Echo", b"after") == b"after"
        assert call_once(edge, "local")[0] is GrpcStatus.OK
        build.close()
        assert edge.stop() == 0


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_malformed_token_row_grants_nothing_and_ends_nothing(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    secrets = {"good": "bp_good", "bad": "bp_bad"}
    with EdgeHost([DemoSatellite("local")], sleep_after_s=600, ledger=ledger) as edge:
        build = client_of(edge, "local")
        assert build.unary("Echo", b"before") == b"before"
        with edited(ledger, 20) as db:
            for name, secret in secrets.items():
                db.execute(
                    "INSERT INTO token (name, hash, grants, created_us) VALUES (?, ?, ?, 1)",
                    (name, hash_token(secret), f'["{ORG}/*"]'),
                )
        wait_answer(edge, "local", secrets["bad"], GrpcStatus.OK)
        for column, value in (("hash", "'sha256:zz'"), ("grants", "'no json'"), ("name", "CAST(x'ff' AS TEXT)")):
            with edited(ledger, 20) as db:
                db.execute(f"UPDATE token SET {column} = {value} WHERE hash <> ?", (hash_token(secrets["good"]),))
            wait_answer(edge, "local", secrets["bad"], GrpcStatus.UNAUTHENTICATED)
            assert call_once(edge, "local", secrets["good"])[0] is GrpcStatus.OK
        assert build.unary("Echo", b"after") == b"after"
        build.close()
        assert edge.stop() == 0
        told = [record for record in edge.records() if record["message"] == "a row is left out"]
        assert 1 <= len(told) <= 3, told
    with EdgeHost([DemoSatellite("local")], sleep_after_s=600, ledger=ledger) as edge:  # and it starts again
        assert call_once(edge, "local", secrets["good"])[0] is GrpcStatus.OK
        assert call_once(edge, "local", secrets["bad"])[0] is GrpcStatus.UNAUTHENTICATED
        assert edge.stop() == 0
