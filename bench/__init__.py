"""The benchmarks: bentpipe beside what a user would choose instead. bench/README.md says how to run and read them.

It is never installed, and the daemon must never import it. A figure here never stands without the machine, the date and
the noise of its run.
"""
