"""Every bound on what a client can make the daemon keep or do before its hand-off, with its reason.

Unless said otherwise, a client over a limit gets GOAWAY(ENHANCE_YOUR_CALM) with the limit's name, and its connection ends.
"""

# -- of every frame ----------------------------------------------------------------------------------------------------
FRAME_BYTES = 16_384
"""SETTINGS_MAX_FRAME_SIZE's initial value (RFC 9113 §6.5.2); we never announce another value. Over it: FRAME_SIZE_ERROR."""
CONTINUATION_FRAMES = 8
"""CONTINUATION frames of one header block; nghttp2's bound. It stops floods of empty ones (CVE-2024-27316)."""
HEADER_BLOCK_BYTES = 32 << 10
"""A compressed header block. Metadata with a token of over 16 KiB exist (JWTs) and need CONTINUATION: 16 KiB is too few."""
SETTINGS_FRAMES = 3
"""The client's SETTINGS frames: one opens the connection. No known client changes its SETTINGS before it gets an answer."""
SETTINGS_ENTRIES = 32
"""Parameters of one SETTINGS frame; nghttp2's bound. RFC 9113 defines six."""

# -- until the first header block is complete --------------------------------------------------------------------------
GREETING_BYTES = 64 << 10
"""All bytes. The client is a stranger, so this is no more than a header block and the frames before it."""
OPENING_FRAMES = 64
"""WINDOW_UPDATE, PRIORITY, GOAWAY, PING ACK and unknown types. Real clients send one to six (nghttp2 used to send five
PRIORITY); 64 leaves room for GREASE (RFC 9113 §5.5)."""
PING_FRAMES = 10
"""Each makes us answer, and no client has a reason to send one before its first request."""
HEADER_LIST_BYTES = 48 << 10
"""The decoded header list, as RFC 9113 §6.5.2 counts it (32 per field). It stops HPACK bombs. It is larger than
HEADER_BLOCK_BYTES, since Huffman coding can make a large token a third smaller."""
HEADER_FIELDS = 100
"""Envoy's bound; a build's metadata have about 20."""
TABLE_SIZE_UPDATES = 2
"""Table size updates of one block: the smallest size since the last block, and the last (RFC 7541 §4.2). Over it:
COMPRESSION_ERROR."""
HPACK_INTEGER_BYTES = 5
"""Bytes of an integer after its prefix: 32 bits, more than any length or index here. Over it: COMPRESSION_ERROR (RFC 7541
§5.1)."""
TABLE_BYTES = 4_096
"""SETTINGS_HEADER_TABLE_SIZE's initial value. Over it: COMPRESSION_ERROR."""

FURTHER_FRAMES = 2_000
"""Requests that are refused on a port with one_request_per_connection, until the client has read the GOAWAY. A frontend
sends some dozens in a round trip."""

# -- while held --------------------------------------------------------------------------------------------------------
TRANSCRIPT_BYTES = 256 << 10
"""Bytes kept of one client: the 64 KiB that it may send as DATA unless our SETTINGS said less, header blocks of the streams
it opens meanwhile, and frame headers. Beyond it the daemon stops reading, and TCP slows the client down. The client is not
refused."""
WINDOW_BYTES = 65_535
"""DATA: the connection's initial flow-control window (RFC 9113 §6.9.2); we never send WINDOW_UPDATE. Over it:
FLOW_CONTROL_ERROR."""
HELD_HEADERS = 1_000
"""Header blocks: streams and trailers. A client that asks before it has read any SETTINGS opens as many as its caller
asks for; servers mostly allow 100 to 250 at once."""
RST_STREAM_FRAMES = 100
"""Streams that the client gives up. Calls with deadlines of seconds do that during a hold of minutes. It stops rapid reset
(CVE-2023-44487) before the satellite sees any of it."""
QUIET_FRAMES = 2_000
"""WINDOW_UPDATE, PRIORITY, GOAWAY, PING ACK and unknown types: two for each stream that may be opened."""
EMPTY_DATA_FRAMES = 1_000
"""Empty DATA frames: one for each stream that may be opened, since gRPC clients end requests so. WINDOW_BYTES bounds the
others."""
PING_BURST = 10
PING_PER_S = 2.0
"""Real clients' keepalive is seconds apart (grpc-go: 10 s at least)."""

# -- on a connection that we answer ourselves --------------------------------------------------------------------------
ANSWERED_MESSAGE_BYTES = 4_096
"""One request to a service of our own; a health check names one service. Over it: RESOURCE_EXHAUSTED for that call."""
ANSWERED_STREAMS = 100
"""Streams open at once (RFC 9113 §5.1.2 advises no fewer)."""
ANSWERED_BYTES = 1 << 20
"""Bytes kept of one connection: a hundred calls at once with 8 KiB of metadata each. The strangers' account bounds all
connections together."""
ANSWERED_BURST = 500
ANSWERED_PER_S = 100.0
"""Frames of any kind: each costs some 50 µs, and a health check needs a few. It stops rapid reset and similar attacks, and
messages in pieces of one byte."""

# -- on a connection of the control API --------------------------------------------------------------------------------
API_MESSAGE_BYTES = 4 << 20
"""One request message; what gRPC's own libraries take by default. Over it: RESOURCE_EXHAUSTED for that call."""
API_STREAMS = 100
"""Open at once (RFC 9113 §5.1.2 advises no fewer). The Earthly CLI has one or two."""
API_BYTES = 8 << 20
"""Kept of one connection: one message of a log stream, and headers of API_STREAMS calls. The principal's share bounds all
of its connections together."""
API_FRAMES, API_FRAMES_PER_S = 2_000, 2_000.0
"""Frames of any kind. A build that prints much sends hundreds a second in its log stream; past this we read more slowly."""
API_RESETS, API_RESETS_PER_S = 100, 10.0
"""Calls that the client gives up: it does so at Ctrl-C and at deadlines. Rapid reset (CVE-2023-44487) ends here."""

ASKED_FRAMES = 64
"""Frames that a satellite may send in answer to our question: SETTINGS and its ACK, windows, a PING, and an answer in three
frames."""
STATUS_MESSAGE_BYTES = 4_096
"""Bytes of a grpc-message, percent-encoded: clients refuse header lists of over 8 KiB or so. The rest is cut off."""
