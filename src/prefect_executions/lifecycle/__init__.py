"""The lifecycle of an execution: statuses, history, and their relation to Prefect's states.

Law: a status never goes back. After a terminal status only notes are added.
"""
