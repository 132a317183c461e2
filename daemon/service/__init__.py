"""The composition root and what operators run: serve, check, token, doctor, demo."""
