"""The demo's satellite with HTTP/2 settings: grpcio_satellite.py PORT [--boot S] [--header-table N] [--max-age MS]."""

import argparse
import time

from bentpipe.daemon.testbed.satellite import make_server


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--boot", type=float, default=0.0)
    parser.add_argument("--header-table", type=int, help="SETTINGS_HEADER_TABLE_SIZE")
    parser.add_argument("--max-age", type=int, help="GOAWAY after so many milliseconds")
    arguments = parser.parse_args()
    time.sleep(arguments.boot)
    options = {
        "grpc.http2.hpack_table_size.decoder": arguments.header_table,
        "grpc.max_connection_age_ms": arguments.max_age,
    }
    chosen = [(name, value) for name, value in options.items() if value is not None]
    server = make_server(f"127.0.0.1:{arguments.port}", chosen)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
