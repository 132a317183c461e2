"""The SQLite file and the DynamoDB table below `ledger/`, `registry/` and `coordination/`.

It opens them, calls them with deadlines, and turns their errors into ours. It must never know what a row means, and never
block the Trio thread.
"""
