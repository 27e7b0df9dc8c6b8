"""How the ledger's tables came to be, in numbered steps that never change once released."""
