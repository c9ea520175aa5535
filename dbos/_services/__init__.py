"""Background services: each has a noun for a name, one method for one round, and a loop that it inherits."""
