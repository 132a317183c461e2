"""What the control plane and the data plane say to each other: the records, their bytes, and the socket that carries them.

Both processes use this package. It must not know what either process does with a record: it imports neither `edge/` nor
`fleet/`, and no record carries a key, a password or a descriptor, except between two data planes (LISTENERS).
"""
