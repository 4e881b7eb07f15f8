"""The tables of the store. Migrations create them; a test holds the two together."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

# Times are Unix seconds, as in OpenAI's objects: whole numbers mean the same in every database and time zone.
api_keys: Final = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(8), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("user", sa.String(129), nullable=False, index=True),
    sa.Column("label", sa.String(200)),
    sa.Column("admin", sa.Boolean, nullable=False),
    sa.Column("may_name_sub_users", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
)

# One row per user that has a constitution. `active_version` is a column, not a flag on versions: so there is always
# exactly one.
constitutions: Final = sa.Table(
    "constitutions",
    metadata,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("user", sa.String(129), nullable=False, unique=True),
    sa.Column("active_version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

constitution_versions: Final = sa.Table(
    "constitution_versions",
    metadata,
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

# One row per user that has a default policy. `content` is JSON of the fields that were said, no others: what is left
# out stays the server's to change. `version` counts the changes, so that `<id>@<version>` names one text for ever.
user_policies: Final = sa.Table(
    "user_policies",
    metadata,
    sa.Column("user", sa.String(129), primary_key=True),
    sa.Column("id", sa.String(20), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

# What was written, in order. AUTOINCREMENT: a number is never used twice, even after the newest rows were deleted.
changes: Final = sa.Table(
    "changes",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("subject", sa.String(129), nullable=False),
    sqlite_autoincrement=True,
)
