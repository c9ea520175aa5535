"""Transactions outside of workflows: what a database carries out is the user's function and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dbos._context import Context, install, restore
from dbos._engine.transaction import TransactionFunction
from dbos._registrations import required_roles_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Unrecorded"]


class Unrecorded:
    """The call of a function in a transaction that no workflow has asked for."""

    is_recorded = False

    def __init__(
        self,
        transaction: TransactionFunction,
        database: Any,
        context: Context,
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> None:
        context = context.with_role(required_roles_of(transaction.info, args), transaction.name)
        self.purpose = f"Transaction {transaction.name}"
        self.isolation_level = transaction.isolation_level
        self._func, self._args, self._kwargs = transaction.func, args, kwargs
        self._context = Context(
            is_in_transaction=True,
            database=database,
            authenticated_user=context.authenticated_user,
            authenticated_roles=context.authenticated_roles,
            assumed_role=context.assumed_role,
        )

    def enter(self, session: Session) -> None:
        """There is no record to look for."""

    def call(self, session: Any) -> Any:
        """Call the user's function; of a coroutine function, return what is to be awaited."""
        self._context.session = session
        if inspect.iscoroutinefunction(self._func):
            return self._await()
        token = install(self._context)
        try:
            return self._func(*self._args, **self._kwargs)
        finally:
            restore(token)
            self._context.session = None

    async def _await(self) -> Any:
        token = install(self._context)
        try:
            return await self._func(*self._args, **self._kwargs)
        finally:
            restore(token)
            self._context.session = None

    def leave(self, session: Session, value: Any) -> Any:
        """Nor one to write."""
        return value
