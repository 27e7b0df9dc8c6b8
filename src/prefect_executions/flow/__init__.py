"""Methods as Prefect flows: declaration, recording of each run, and the hook that seals the record."""
