"""The one table of ours that lives in the application's database, beside users' own."""

from __future__ import annotations

import sqlalchemy as sa

from .table import SystemTable

__all__ = ["ApplicationSchema"]


class ApplicationSchema:
    """The table that records transactions, in the same schema name as the system tables."""

    metadata_obj = sa.MetaData()

    transaction_outputs = SystemTable(
        "transaction_outputs",
        metadata_obj,
        sa.Column("workflow_uuid", sa.Text, primary_key=True),
        sa.Column("function_id", sa.Integer, primary_key=True),
        sa.Column("output", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("txn_id", sa.Text),
        sa.Column("txn_snapshot", sa.Text),
        sa.Column("executor_id", sa.Text),
        sa.Column("function_name", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("start_token", sa.Text),
        sa.Column("serialization", sa.Text),
    )
