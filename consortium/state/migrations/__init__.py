"""Alembic migrations of the state, run when the server starts."""
