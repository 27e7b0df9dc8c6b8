"""A Method described by a file: its parser, its schemas, its scripts and their inputs."""
