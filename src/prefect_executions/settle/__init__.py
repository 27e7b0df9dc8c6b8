"""After the fact: every execution that Prefect accepted gets its one seal, whatever died."""
