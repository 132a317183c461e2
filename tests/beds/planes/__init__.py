"""A data plane as a process, and a control plane that does what a test's script says."""
