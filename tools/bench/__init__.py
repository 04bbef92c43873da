"""Times and memory of attention layers: `python -m tools.bench --help`."""
