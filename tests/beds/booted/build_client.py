"""A client in a root's network: `build_client.py PORT CA NAME SATELLITE SECONDS`, with the token in EARTHLY_TOKEN.

NAME is the name for which the daemon has its certificate.

It makes one call of the testbed's satellite that lasts for so long, as a build does. Then it prints what was answered, or
the code and the words of the refusal. It says `begun` once the satellite has answered another call on the same connection.
"""

import os
import sys
from pathlib import Path

import grpc

SERVICE = "bentpipe.demo.Satellite"
DEADLINE_S = 120.0


def main() -> int:
    port, ca, server_name, satellite, seconds = sys.argv[1:]
    org, _, name = satellite.partition("/")
    metadata = (
        ("satellite_org", org),
        ("satellite_name", name),
        ("satellite_token", os.environ["EARTHLY_TOKEN"]),
    )
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    options = [("grpc.ssl_target_name_override", server_name)]
    with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
        try:
            # As a client that tries again by itself while nobody answers.
            first = channel.unary_unary(f"/{SERVICE}/Echo")
            first(b"begun", metadata=metadata, timeout=DEADLINE_S, wait_for_ready=True)
            print("begun", flush=True)
            sleep = channel.unary_unary(f"/{SERVICE}/Sleep")
            answer = sleep(seconds.encode(), metadata=metadata, timeout=float(seconds) + DEADLINE_S)
        except grpc.RpcError as exc:
            print(exc.code().name, exc.details(), flush=True)
            return 1
    print(answer.decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
