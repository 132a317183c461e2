"""The SQLite file and the DynamoDB table below `ledger/`, `registry/` and `coordination/`.

`sqlite_file` and `dynamodb_table` make calls with deadlines and turn every error into a StoreError. `schema` has the file's
tables and migrations, `malformed` reads rows that anybody may have written, and `dynamodb_fleets` tells the operator if two
fleets share a table.

It must never know what a row means, and never block the Trio thread.
"""
