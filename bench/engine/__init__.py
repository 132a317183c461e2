"""What the engine costs alone, without a daemon.

Nothing here may ever use the control plane: only the engine's C interface and sockets.
"""
