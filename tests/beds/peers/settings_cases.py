"""Satellites with SETTINGS of every kind, and the clients that are tried on them."""

import pytest

from beds.peers.kinds import CLIENT_KINDS
from beds.programs import program

COMMAND = (*program("peers.settings_satellite"), "{port}")
SLOW = ("--boot", "0.6")
CALLS = 60
"""At once: more than some satellites allow."""
MESSAGES = [b"%d" % number for number in range(CALLS)]
ALL_AT_ONCE = "1=0,3=1,4=0,5=16384,6=65536,8=1,9=1"
SAID = "3=100,4=65536,9=1"
ASK_AT_ONCE = {"grpclib", "tonic"}
"""Clients that wait for nobody's SETTINGS (tonic takes 100 streams for granted until it has read some): a satellite that
refuses calls before they can know better refuses some of theirs without us too. Their first call comes alone."""
WAIT = sorted(set(CLIENT_KINDS) - ASK_AT_ONCE)
KIND = {kind: pytest.param(kind, marks=[pytest.mark.slow] if kind == "grpc-java" else []) for kind in CLIENT_KINDS}
"""A virtual machine's start for each case is too long for every run of the tests: Java has all of them in `make soak`."""
