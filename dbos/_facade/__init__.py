"""What users find on the class ``DBOS``, by subject: decorators, starting, operations, and where the caller stands.

Each subject is a base of the class, which adds the life cycle.
"""
