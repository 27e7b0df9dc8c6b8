"""The bundle's folder and its zip: write, gather, seal, read, verify."""
