"""The engine: what runs workflows and steps, as flows that decide and drivers that act."""
