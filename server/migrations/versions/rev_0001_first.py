"""API keys, constitutions with their versions, and the list of changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(8), primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("user", sa.String(129), nullable=False),
        sa.Column("label", sa.String(200)),
        sa.Column("admin", sa.Boolean, nullable=False),
        sa.Column("may_name_sub_users", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_index("ix_api_keys_user", "api_keys", ["user"])
    op.create_table(
        "constitutions",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("user", sa.String(129), nullable=False, unique=True),
        sa.Column("active_version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "constitution_versions",
        sa.Column(
            "constitution_id",
            sa.String(20),
            sa.ForeignKey("constitutions.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(129), nullable=False),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("changes", "constitution_versions", "constitutions", "api_keys"):
        op.drop_table(table)
