"""Edge hosts for tests, in this process or their own, and what stands before them: proxies, cut wires."""
