"""The questions that the benchmarks answer, one module for each.

A question must never know how a peer is started or how load is generated; it says what to measure and what the figures
mean.
"""
