"""The record of an execution as values, and what every document that tells of it must say alike."""
