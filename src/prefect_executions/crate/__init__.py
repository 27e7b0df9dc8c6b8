"""The Workflow Run RO-Crate of an execution (Process Run Crate 0.5 on RO-Crate 1.1): writer and reader.

Law: the crate agrees with the JSON documents. If the profile requires a fact that is
unknown (a licence, an organization), the crate says that it was not stated.
"""
