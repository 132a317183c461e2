"""The contracts of the daemon's interfaces, as tests: each adapter's test module runs the suite of its contract."""
