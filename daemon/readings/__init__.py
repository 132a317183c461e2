"""What the responders on satellites tell: the values, the checks on them, and what a series of them means. Pure.

A satellite belongs to its tenant, so every answer is bounded and checked here before anything else uses it. Nothing here
opens a connection, reads a clock or acts on a satellite.
"""
