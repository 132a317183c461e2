"""What the providers cannot know: the ledger of every satellite's states."""
