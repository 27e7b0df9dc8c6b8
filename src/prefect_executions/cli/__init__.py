"""The command line `executions`: it parses options, calls the library and shows the result."""
