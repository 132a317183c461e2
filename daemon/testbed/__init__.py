"""What the demo and the tests share: an edge host, satellites, clients, and an emulated EC2.

Only the demo and the tests may import it. It must never import product code but the daemon's plain values (`model`): the
daemon under test is a process of its own.
"""
