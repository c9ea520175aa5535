"""Programs that use the library, each to be run with ``python -m examples.<name>`` from the project's root."""
