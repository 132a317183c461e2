"""The responder: the small program on a satellite that tells the daemon how the machine is, and keeps it usable.

It runs where nothing of ours is installed: the standard library of Python 3.9 and no more. `bundle.py`, which runs on the
edge host, makes one file of the other modules. They must never import anything else of bentpipe's, and must never wait for
the machine while they answer.
"""
