"""A server that speaks EC2's protocol, with states that take time, faults and token buckets, for the demo and the tests.

It knows EC2 and nothing of bentpipe: its answers come from EC2's documentation and from what we have seen of EC2. They must
never come from what our provider expects.
"""
