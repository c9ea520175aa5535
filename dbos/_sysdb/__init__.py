"""The system database: values that can be written, the committer that writes them, stores that read, two dialects."""
