"""Runs scripts in Docker containers."""
