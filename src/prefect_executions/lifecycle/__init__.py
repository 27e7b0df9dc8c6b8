"""The lifecycle of an execution: its statuses, its history, and how Prefect's states become both.

Law: a status never goes back; what comes after a terminal status is kept as a
note and changes nothing.
"""
