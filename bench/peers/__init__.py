"""The programs that are measured: bentpipe, its alternatives, and no proxy at all.

Each alternative has its configuration beside it, with the reason for each line. A peer must never
get settings that make it slower than its users would run it.
"""
