"""Orgs, principals and their credentials: who a caller of the control API is, and what it may do.

`contract.py` says what the API and the edge ask of it. Nothing here speaks a wire protocol or knows a connection.
"""
