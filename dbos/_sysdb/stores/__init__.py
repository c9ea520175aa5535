"""The stores of the system database: one module per table family, statements on top, verbs below."""
