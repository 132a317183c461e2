"""The engine in C and its binding: moves bytes between two sockets, in its own threads, without Python."""
