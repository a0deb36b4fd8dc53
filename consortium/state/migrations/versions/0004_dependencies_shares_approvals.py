"""Dependencies, arrays and deadlines of jobs; fair-share history, run times; approvals of quotas.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('array', sa.String(length=255), nullable=False, server_default=''))
        batch_op.add_column(sa.Column('array_index', sa.Integer(), nullable=False, server_default='0'))
        batch_op.add_column(sa.Column('start_by_ms', sa.BigInteger(), nullable=False, server_default='0'))
        batch_op.add_column(sa.Column('observed', sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.create_index('ix_jobs_array', ['array'], unique=False)
        batch_op.create_index('ix_jobs_observed', ['observed', 'state'], unique=False)
    op.create_table('dependencies',
    sa.Column('job', sa.String(length=255), nullable=False),
    sa.Column('after', sa.String(length=255), nullable=False),
    sa.PrimaryKeyConstraint('job', 'after')
    )
    with op.batch_alter_table('dependencies', schema=None) as batch_op:
        batch_op.create_index('ix_dependencies_after', ['after'], unique=False)
    op.create_table('history',
    sa.Column('account', sa.String(length=255), nullable=False),
    sa.Column('borrowed', sa.BigInteger(), nullable=False),
    sa.Column('lent', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('account')
    )
    op.create_table('run_times',
    sa.Column('account', sa.String(length=255), nullable=False),
    sa.Column('shares', sa.JSON(), nullable=False),
    sa.Column('errors', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('account')
    )
    op.create_table('approvals',
    sa.Column('change', sa.String(length=255), nullable=False),
    sa.Column('replaces', sa.String(length=255), nullable=False),
    sa.Column('partner', sa.String(length=255), nullable=False),
    sa.Column('person', sa.String(length=255), nullable=False),
    sa.Column('signature', sa.Text(), nullable=False),
    sa.Column('text', sa.Text(), nullable=False),
    sa.Column('at_ms', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('change', 'replaces', 'partner')
    )
