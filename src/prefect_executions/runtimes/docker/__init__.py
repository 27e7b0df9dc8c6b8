"""The runtime for Docker containers."""
