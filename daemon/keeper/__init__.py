"""The keeper: a small process that is the parent of local satellites, so that they outlive the daemon.

It spawns them on request, each with a user, a cgroup and a folder of its own. It keeps the end of their output, and their
exit status until the daemon has taken it. It must never decide anything about a satellite, and never import a package that
is not Python's own: no Trio, no TLS, no store. `protocol` has what it says to the daemon, `program` is the process.
"""
