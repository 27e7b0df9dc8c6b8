"""Descriptor Methods (``method.json``): parser, schemas, scripts and inputs."""
