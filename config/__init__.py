"""Typed configuration: its model, its loader and the sample file. The only place where raw TOML exists."""
