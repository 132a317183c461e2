"""The small programs of ours that run on a satellite: limits, cache disk, BuildKit's start, its runtime, and a check of all.

A satellite has Python 3.9 or newer, and no bentpipe. So they must never import anything but the standard library and each
other."""
