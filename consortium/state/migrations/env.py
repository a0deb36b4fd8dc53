"""Alembic's environment: migrate the engine that `consortium.state.Database` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine

from consortium.state.tables import metadata


def run() -> None:
    """Bring the engine's schema to the wanted revision, in one transaction."""
    engine: Engine = context.config.attributes["engine"]
    with engine.connect().execution_options(consortium_write=True) as connection, connection.begin():
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
        with context.begin_transaction():
            context.run_migrations()


run()
