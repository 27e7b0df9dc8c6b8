"""The use cases of the command line, the API and the page, each implemented once."""
