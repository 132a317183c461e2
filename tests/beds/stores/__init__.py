"""Stores for tests: rows in memory, DynamoDB's emulator, and programs that are killed while they write."""
