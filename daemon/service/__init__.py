"""The composition root and the command line: what operators run (`serve`, `check`, `token`, `report`, `doctor`, `demo`).

It builds the other packages and connects them. It must never decide about a client or a satellite, and nothing else may
import it.
"""
