"""The query language for executions: what a caller can ask the ledger for, as values."""
