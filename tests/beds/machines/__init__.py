"""Providers for tests, and machines: in memory, on an emulated EC2, and as processes."""
