"""Inside the run: a Method as a Prefect flow, what runs around its code, and the hooks that seal it."""
