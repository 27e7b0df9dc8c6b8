"""Object stores behind one interface: a local folder, S3, or another fsspec filesystem."""
