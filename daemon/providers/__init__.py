"""Where machines come from. One module a provider; `base` is the contract all of them keep."""
