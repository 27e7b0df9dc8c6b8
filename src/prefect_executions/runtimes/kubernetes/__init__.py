"""Runs scripts in Kubernetes pods."""
