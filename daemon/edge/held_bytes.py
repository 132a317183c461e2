"""What a connection costs the daemon beside what its client said, as seen (tests/e2e/test_accounts.py measures it again).

Every byte that somebody holds is on one account (`accounts.py`): these, and what the client said.
"""

FAIR_BYTES = 4 << 10
"""What a client may have said though the limit is reached: an opening with its metadata and a small request. So whoever
brings much is refused, not whoever comes next. In all, at most `limits.held_bytes` and this and one read a connection."""

PLACE_BYTES = 8 << 10
"""A connection before its hand-off: its task and its objects."""

TLS_BYTES = 20 << 10
"""OpenSSL's state of a connection, from the first byte of its handshake."""

HELD_BYTES = 8 << 10
"""While a client waits for its satellite: the tasks that watch it meanwhile."""

CLIENT_BYTES = 64 << 10
"""What a held client may cost beside what it said: its tasks and objects, and OpenSSL's state. With this, the memory that
all held clients take is bounded: `limits.held_bytes` and CLIENT_BYTES for each of `limits.max_connections`."""
