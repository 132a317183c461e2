"""The engine in C, which moves bytes between two sockets in its own threads, and its typed Python binding.

It must never decide anything: it knows no satellite and no client's identity, and of HTTP/2 only how a client begins. The C
code must never call Python and never log.
"""
