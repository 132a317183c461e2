"""What the ledger says of hours, money and waiting: as numbers, as a table, and as a picture."""
