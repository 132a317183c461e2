"""The provider `process`: satellites that are commands on this host. `provider` is the way in.

It must never leave a process behind when a satellite stops or the daemon ends, and never block the Trio thread.
"""
