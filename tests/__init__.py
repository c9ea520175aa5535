"""Unit, conformance, integration, acceptance, simulation, migration and typing tests; see CONTRIBUTING.md."""
