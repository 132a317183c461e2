"""The engine in C, which moves bytes between two sockets in its own threads, and its typed Python binding.

It must never decide anything: it knows no HTTP/2, no satellite and no client's identity. The C code must never call Python
and never log.
"""
