"""What is measured: bentpipe, its alternatives, and no proxy at all. Each alternative has its configuration beside it."""
