"""Where a satellite's files are. Values only.

programs/settings.py has the places that the programs on the satellite use. This module must never import anything."""

LIBRARY = "/usr/local/lib/bentpipe"
RESPONDER = f"{LIBRARY}/responder.py"
RESPONDER_SETTINGS = "/etc/bentpipe/responder.json"
RUNTIME = f"{LIBRARY}/runtime"
"""What BuildKit runs as runc."""
UNITS = "/etc/systemd/system"
GENERATOR = "/etc/systemd/system-generators/bentpipe-limits"
SLEEP_HOOK = "/usr/lib/systemd/system-sleep/bentpipe"
SYSCTL = "/etc/sysctl.d/60-bentpipe.conf"
TARGET = "bentpipe-satellite.target"
LIMITS_DROP_IN = "/run/systemd/generator/builds.slice.d/50-bentpipe-limits.conf"

ENROLMENT = "/etc/bentpipe/enrolment.json"
AUTHORITY = "/etc/bentpipe/tls/ca.pem"
CERTIFICATE = "/etc/bentpipe/tls/certificate.pem"
KEY = "/etc/bentpipe/tls/key.pem"

PROGRAMS_PACKAGE = "bentpipe.daemon.image.programs"
PYTHON = "/usr/bin/python3 -sS -m"
"""-s, -S: without the user's and the site's packages. The programs are found by PYTHONPATH."""
