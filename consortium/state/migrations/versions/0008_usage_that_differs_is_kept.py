"""Usage that differs from what is known of its stretch is kept, marked; several rows may begin at once.

Rows that leave their month, or of more GPUs than any leg has, are taken no more, and those there are stay in the
ledger alone.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_COLUMNS = "leg, epoch, start_ms, end_ms, job, account, site, flavor, gpus, origin, seq, conflict"
_LONGEST_MS = 31 * 86_400_000
_MAX_GPUS = 100_000


def upgrade() -> None:
    op.execute("CREATE TABLE usage_before AS SELECT * FROM usage")
    op.drop_table("usage")
    op.create_table(
        "usage",
        sa.Column("id", _SERIAL, autoincrement=True, nullable=False),
        sa.Column("leg", sa.String(length=255), nullable=False),
        sa.Column("epoch", sa.String(length=255), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("job", sa.String(length=255), nullable=False),
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("site", sa.String(length=255), nullable=False),
        sa.Column("flavor", sa.String(length=255), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(length=255), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("conflict", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_usage_leg", "usage", ["leg", "site"])
    op.execute(
        f"INSERT INTO usage ({_COLUMNS}) SELECT {_COLUMNS} FROM usage_before "  # noqa: S608  constants
        f"WHERE end_ms - start_ms <= {_LONGEST_MS} AND gpus <= {_MAX_GPUS} ORDER BY origin, seq, start_ms"
    )
    op.drop_table("usage_before")
