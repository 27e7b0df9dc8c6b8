"""The record of an execution: its id, its documents, and the summary that PROV and crate must agree with."""
