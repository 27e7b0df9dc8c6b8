"""Signatures: DSSE envelopes, in-toto statements with SLSA provenance, Merkle trees, Ed25519 keys."""
