"""Tell an execution as a Workflow Run RO-Crate (Process Run Crate 0.5 on RO-Crate 1.1), and read it back.

Law: the crate says what the JSON documents say. Where the profile wants what
nobody stated (a licence, an organisation), it says that nobody stated it.
"""
