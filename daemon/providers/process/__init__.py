"""The provider `process`: satellites that are commands on this host. `provider` is the way in."""
