"""The runtime for Kubernetes pods."""
