"""The signatures that datasets were registered with, taken over from their records.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('datasets', schema=None) as batch_op:
        batch_op.add_column(sa.Column('signature', sa.Text(), nullable=False, server_default=''))
    records = sa.table('records', sa.column('type', sa.String()), sa.column('payload', sa.JSON()))
    datasets = sa.table('datasets', sa.column('id', sa.String()), sa.column('signer'), sa.column('signature'))
    connection = op.get_bind()
    told = connection.execute(sa.select(records.c.payload).where(records.c.type == 'dataset')).scalars()
    signed = [(body['dataset']['id'], body['signature']) for body in (payload['body'] for payload in told)
              if body.get('signature')]
    for dataset, signature in signed:
        same = (datasets.c.id == dataset) & (datasets.c.signer != '')
        connection.execute(datasets.update().where(same).values(signature=signature))
