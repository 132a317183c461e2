"""Principals and their credentials: who a caller of the edge or of the control API is, and what it may do.

`contract.py` says what the API asks, `admission.py` what the edge asks. What must never be here: a wire protocol, a
connection, or a secret in a log line.
"""
