"""What the databases look like: the migrations' SQL files, and the same tables described for SQLAlchemy."""
