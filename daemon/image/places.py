"""Where a satellite's files are. Values only.

programs/settings.py has the places that the programs on the satellite use. This module must never import anything."""

LIBRARY = "/usr/local/lib/bentpipe"
RESPONDER = f"{LIBRARY}/responder.py"
ENROL = f"{LIBRARY}/enrol.py"
UNITS = "/etc/systemd/system"
GENERATOR = "/etc/systemd/system-generators/bentpipe-limits"
SLEEP_HOOK = "/usr/lib/systemd/system-sleep/bentpipe"
DOCTOR = "/usr/local/sbin/bentpipe-doctor"
SYSCTL = "/etc/sysctl.d/60-bentpipe.conf"
TARGET = "bentpipe-satellite.target"

CNI = "/etc/bentpipe/cni.conflist"

ENROLMENT = "/etc/bentpipe/enrolment.json"
TLS_FOLDER = "/etc/bentpipe/tls"
AUTHORITY = f"{TLS_FOLDER}/ca.pem"
IDENTITY = f"{TLS_FOLDER}/identity.pem"
"""The machine's key and its certificate in one file, which daemon/responder/enrol.py replaces as a whole."""

PROGRAMS_PACKAGE = "bentpipe.daemon.image.programs"
PYTHON = "/usr/bin/python3 -sS -m"
"""-s, -S: without the user's and the site's packages. The programs are found by PYTHONPATH."""
