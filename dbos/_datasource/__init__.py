"""Datasources: users' transactions against several databases, of threads and of coroutines."""
