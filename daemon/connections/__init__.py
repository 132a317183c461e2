"""One connection on its socket: accept, limits, PROXY header, TLS, reads and writes, one dial, the relay to the hand-off.

The control plane and the data plane both use it. It knows no satellite, no principal and no policy, and must never decide
what a connection is for.
"""
