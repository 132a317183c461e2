"""The satellite's machine: decisions alone. Pure: no trio, no configuration, no provider, no clock of its own."""
