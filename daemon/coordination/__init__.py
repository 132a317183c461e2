"""By what several edge hosts agree on who acts on a satellite: one contract, and its adapters."""
