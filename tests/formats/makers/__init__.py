"""One module per format: `SUFFIX` (of a file or a folder) and `make(path) -> Values`."""
