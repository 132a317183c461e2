"""The typed configuration: its model, its loader, and the commented sample file.

This is the only package that reads raw TOML. It must never do anything with what it has read: it opens no socket, starts
no task, and knows no provider but by the name of its section.
"""
