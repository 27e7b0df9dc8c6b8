"""The model of a Method, and its secrets.

The package `descriptors` loads Methods from files; it is not imported for Python Methods.
"""
