"""Every bound of the protocol between the two planes, in one place. Each is a number that both sides know."""

MESSAGE_BYTES = 64 << 10
"""One message of the socket: many records. The kernel takes messages of up to 212,960 bytes by default (SO_SNDBUF - 32)."""

RECORD_BYTES = 60 << 10
"""The body of one record, at most."""

DATA_BYTES = 32 << 10
"""Bytes of a connection in one BYTES or SAY record, at most."""

QUEUE_BYTES = 32 << 20
"""What waits for the socket in one process, at most. The credits below keep the queue far from it. A queue that is longer
means that the peer does not read, and the link ends."""

FIRST_BYTES = 16 << 10
"""What an ARRIVED record carries of the client's bytes, at most; the rest follows as BYTES."""

UP_WINDOW = 64 << 10
"""How many bytes of a connection the data plane may send up beyond those that the control plane has taken."""

DOWN_WINDOW = 64 << 10
"""How many bytes of words the control plane may have in the data plane that TCP has not taken yet."""

TRANSCRIPT_BYTES = 512 << 10
"""What the data plane keeps of one client's bytes, at most. The control plane stops reading a held client at half of it."""

CERTIFICATE_BYTES = 16 << 10
"""A client's certificate in an ARRIVED record; of a longer one only the hash is sent."""

AUTHORITIES_BYTES = 32 << 10
"""The authorities by which a satellite is trusted, as PEM: registration allows 16 KiB, and our own has a handful."""

KEY_BYTES = 8 << 10
"""A private key as PEM."""

CREDENTIAL_BYTES = 48 << 10
"""A credential of the unit: a key, or a certificate with its chain and its key."""

MOMENTS = 8
"""Times that an ENDED tells, with room for more."""

SUMS = 8
"""Sums of bytes that an ENDED tells, with room for more."""

CREDENTIALS = 16
"""Names of CREDENTIAL that a data plane keeps."""

TRUSTS_TAUGHT = 1_024
"""Names of TRUST that a data plane knows at once. A context takes some tens of KiB; the control plane has those forgotten
that were not used for longest."""

TAG_BYTES = 2 << 10
"""What the control plane wants to know of a splice when it comes back: see `tag.py`."""

NOTE_BYTES = 56 << 10
"""What the control plane leaves for its successor."""

WORDS_BYTES = 512
"""A reason in words, for a log or a client."""

NAME_BYTES = 256
"""A name: of a host (RFC 1035 allows 253 characters), of a protocol, of a counter."""

OFFERED_CLIENTS = 1_024
"""Clients that were offered and are not answered yet, at most: the data plane offers the next one after an answer."""

PARKED_CLIENTS = 4_096
"""Clients that wait for a control plane that is away."""

PARKED_S = 15.0
"""For how long they wait. grpc-go gives a server 20 s for its SETTINGS."""

ENDS_KEPT = 65_536
"""Ends of splices that wait for a control plane; later ones are added up by tag."""

ENDS_AHEAD = 1_024
"""Ends that may be under way without a KEPT."""

METERS_A_RECORD = 512
"""Splices in one METERS record."""

COUNTERS_A_RECORD = 512

CERTIFICATES_TOLD = 64
"""Certificates whose end COUNTERS tells, those that end first: with names of 255 bytes they take a third of a record."""

RANGES_A_RECORD = 512
LIVE_CONNECTIONS = 1 << 20

OPEN_HALVES = 4_096
"""Connections to satellites that were opened and no GO has taken yet."""

HOLDER_NUMBERS = 8
"""What a data plane says of the control plane that sits."""

HUNG_S = 10.0
"""A control plane that has said nothing for so long counts as hung: no client is offered to it, and another one may take its
place. It is asked every 2 s."""

HELLO_S = 2.0
"""For the peer's HELLO after the connection."""

UNSEEN_MESSAGES = 16
"""Full messages that may be under way before the peer says that it has seen one."""

GRANTED_TOKENS = 65_536
"""Tokens of one table. The others are asked for one by one, as without a table."""

GRANTS_BYTES = 16 << 10
"""The satellites that one token may use, as patterns."""

CREDENTIALS_BYTES = 1 << 10
"""The credentials by which a cut finds a splice."""

GATES_OPEN = 16_384
"""Gates that one data plane has open, at most."""

GATES_A_RECORD = 4_096
INODES_A_GATE = 64

CREDITED_PRINCIPALS = 65_536
"""Principals whose clients one data plane may admit."""

ADMITTED_MOMENTS = 8
"""Times that an ADMITTED tells, with room for more."""
