"""The command `keras-linattn`: parses, calls the public API, prints."""
