"""Columns that nobody reads are dropped: what they said stands in certificates, commits and records.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("rounds", "previous_outer")
    op.drop_column("rounds", "opened_ms")
    op.drop_column("documents", "recorded_ms")
