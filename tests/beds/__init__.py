"""The tests' beds: what several tests put around the thing that they test. Imported as `beds`, by tests alone.

What the demo shares with the tests is `bentpipe.daemon.testbed`.
"""
