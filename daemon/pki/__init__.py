"""The daemon's own certificate authority for satellites: who may have a certificate, and what is in it.

It decides, makes and keeps certificates. It must never open a socket, know a client, or start and stop a machine.
"""
