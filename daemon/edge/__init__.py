"""The client side: listener, TLS, greeting, admission, refusal, dial, hand-off."""
