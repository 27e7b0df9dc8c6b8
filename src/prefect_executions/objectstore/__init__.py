"""Object storage behind one narrow interface: a local folder, S3, or any other fsspec filesystem."""
