"""The state machine of one satellite: inputs and the time go in, actions come out.

It is pure. It must never import trio, the configuration or a provider, never read a clock, and never carry out an action
itself.
"""
