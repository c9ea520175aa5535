"""What users can ask for, by topic: each operation once, as a flow; the facade declares its two forms."""
