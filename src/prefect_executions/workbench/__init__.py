"""The hall behind every door: each use case, once."""
