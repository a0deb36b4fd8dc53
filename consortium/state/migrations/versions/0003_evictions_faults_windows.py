"""Evictions, faults of nodes, cordons, windows, recalls with notice.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')


def upgrade() -> None:
    with op.batch_alter_table('legs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('stopping_for', sa.String(length=255), nullable=False, server_default=''))
    with op.batch_alter_table('epochs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('kept_ms', sa.BigInteger(), nullable=False, server_default='0'))
    with op.batch_alter_table('sites', schema=None) as batch_op:
        batch_op.add_column(sa.Column('withdraw_ms', sa.BigInteger(), nullable=False, server_default='0'))
    op.create_table('faults',
    sa.Column('id', _SERIAL, autoincrement=True, nullable=False),
    sa.Column('job', sa.String(length=255), nullable=False),
    sa.Column('leg', sa.String(length=255), nullable=False),
    sa.Column('epoch', sa.String(length=255), nullable=False),
    sa.Column('site', sa.String(length=255), nullable=False),
    sa.Column('nodes', sa.JSON(), nullable=False),
    sa.Column('fault', sa.String(length=255), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('at_ms', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sqlite_autoincrement=True
    )
    with op.batch_alter_table('faults', schema=None) as batch_op:
        batch_op.create_index('ix_faults_job', ['job'], unique=False)
        batch_op.create_index('ix_faults_site', ['site', 'at_ms'], unique=False)

    op.create_table('cordons',
    sa.Column('site', sa.String(length=255), nullable=False),
    sa.Column('node', sa.String(length=255), nullable=False),
    sa.Column('since_ms', sa.BigInteger(), nullable=False),
    sa.Column('ended_ms', sa.BigInteger(), nullable=False),
    sa.Column('by', sa.String(length=255), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('site', 'node', 'since_ms')
    )
    op.create_table('windows',
    sa.Column('id', sa.String(length=255), nullable=False),
    sa.Column('site', sa.String(length=255), nullable=False),
    sa.Column('kind', sa.String(length=255), nullable=False),
    sa.Column('nodes', sa.JSON(), nullable=False),
    sa.Column('start_ms', sa.BigInteger(), nullable=False),
    sa.Column('end_ms', sa.BigInteger(), nullable=False),
    sa.Column('account', sa.String(length=255), nullable=False),
    sa.Column('by', sa.String(length=255), nullable=False),
    sa.Column('created_ms', sa.BigInteger(), nullable=False),
    sa.Column('removed_ms', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('windows', schema=None) as batch_op:
        batch_op.create_index('ix_windows_end', ['end_ms'], unique=False)
