"""A server that speaks EC2's protocol, with states that take time, faults and token buckets, for the demo and the tests.

It knows EC2 and nothing of bentpipe: what it answers comes from EC2's documentation and from what was seen of it, never
from what our provider expects.
"""
