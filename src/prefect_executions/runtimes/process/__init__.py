"""Runs scripts as processes on this machine."""
