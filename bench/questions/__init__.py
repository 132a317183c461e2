"""One module a question that the bench answers."""
