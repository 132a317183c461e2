"""The typed configuration: its model, its loader, and the commented sample file.

This is the only package that reads raw TOML. It must never act on what it has read: it opens no socket and
starts no task. It knows a provider only by the name of its section.
"""
