"""The workbench: open bundles on this machine, the order of sealing, and the read side of all executions."""
