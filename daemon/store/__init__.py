"""The SQLite file and the DynamoDB table under `ledger/`, `registry/` and `coordination/`. Knows the meaning of no row."""
