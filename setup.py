"""Build of bentpipe: the five top-level folders become the packages of `bentpipe`, and the C engine is compiled.

There is no `bentpipe/__init__.py`: bentpipe is a namespace (PEP 420), and every package is listed here. What the project
is and needs stands in pyproject.toml.
"""

from setuptools import setup

PACKAGES = {
    "bentpipe.config": "config",
    "bentpipe.daemon": "daemon",
    "bentpipe.daemon.accounts": "daemon/accounts",
    "bentpipe.daemon.admin": "daemon/admin",
    "bentpipe.daemon.api": "daemon/api",
    "bentpipe.daemon.connections": "daemon/connections",
    "bentpipe.daemon.coordination": "daemon/coordination",
    "bentpipe.daemon.dataplane": "daemon/dataplane",
    "bentpipe.daemon.demo": "daemon/demo",
    "bentpipe.daemon.edge": "daemon/edge",
    "bentpipe.daemon.fleet": "daemon/fleet",
    "bentpipe.daemon.fleet.machine": "daemon/fleet/machine",
    "bentpipe.daemon.image": "daemon/image",
    "bentpipe.daemon.image.programs": "daemon/image/programs",
    "bentpipe.daemon.keeper": "daemon/keeper",
    "bentpipe.daemon.ledger": "daemon/ledger",
    "bentpipe.daemon.planes": "daemon/planes",
    "bentpipe.daemon.pki": "daemon/pki",
    "bentpipe.daemon.providers": "daemon/providers",
    "bentpipe.daemon.providers.ec2": "daemon/providers/ec2",
    "bentpipe.daemon.providers.process": "daemon/providers/process",
    "bentpipe.daemon.registry": "daemon/registry",
    "bentpipe.daemon.records": "daemon/records",
    "bentpipe.daemon.readings": "daemon/readings",
    "bentpipe.daemon.report": "daemon/report",
    "bentpipe.daemon.responder": "daemon/responder",
    "bentpipe.daemon.service": "daemon/service",
    "bentpipe.daemon.store": "daemon/store",
    "bentpipe.daemon.testbed": "daemon/testbed",
    "bentpipe.daemon.testbed.ec2_emulator": "daemon/testbed/ec2_emulator",
    "bentpipe.native": "native",
    "bentpipe.proto": "proto",
}

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        **{name: ["py.typed", "*.pyi", "*.toml", "*.proto"] for name in PACKAGES},
        "bentpipe.daemon.admin": ["templates/*.html", "static/*"],
    },
    cffi_modules=["native/_build.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    data_files=[
        (
            "share/bentpipe/systemd",
            [
                "systemd/bentpipe.service",
                "systemd/bentpipe.socket",
                "systemd/certbot-deploy-hook",
                "systemd/bentpipe-keeper.service",
            ],
        ),
        (
            "share/bentpipe/systemd/process",
            [
                "systemd/process/bentpipe-dataplane.socket",
                "systemd/process/bentpipe-dataplane@.service",
                "systemd/process/bentpipe.service",
                "systemd/process/bentpipe.target",
            ],
        ),
        ("share/bentpipe/systemd/process/sysusers.d", ["systemd/process/sysusers.d/bentpipe.conf"]),
        ("share/bentpipe/systemd/process/tmpfiles.d", ["systemd/process/tmpfiles.d/bentpipe.conf"]),
        ("share/bentpipe/modules-load.d", ["systemd/modules-load.d/bentpipe.conf"]),
        ("share/bentpipe/needrestart", ["debian/needrestart.conf"]),
        (
            "share/bentpipe",
            [
                f"config/{name}"
                for name in ("iam-policy.json", "sample.toml", "alert-rules.yml", "grafana-dashboard.json")
            ],
        ),
    ],
    zip_safe=False,
)
