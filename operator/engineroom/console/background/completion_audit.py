"""Audit records of work that outlives its request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.auth.audit.log import AuditEntry, AuditOutcome
from engineroom.console.background.operation_store import OperationStatus
from engineroom.core.transactions.journal import EntryKind

if TYPE_CHECKING:
    from engineroom.auth.audit.log import AuditLog
    from engineroom.console.background.operation_store import Operation
    from engineroom.core.transactions.journal import SagaRecord


class CompletionAudit:
    """Writes how the work ended, in the name of its requester. Methods raise AuthStoreError."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    async def operation(self, ended: Operation) -> None:
        """Record the end of a bulk operation."""
        await self._audit.write(
            AuditEntry(
                who=ended.by,
                action="operation.end",
                target=f"operations/{ended.namespace}/{ended.id}",
                outcome=AuditOutcome.DONE
                if ended.status is OperationStatus.DONE
                else AuditOutcome.FAILED,
                reason=ended.problem,
                namespace=ended.namespace,
                details={
                    "operation": ended.id,
                    "action": ended.action.value,
                    "done": ended.done,
                    "skipped": ended.skipped,
                },
            )
        )

    async def transaction(self, record: SagaRecord, outcome: str) -> None:
        """Record the end of a transaction that this replica took over from a dead one."""
        inputs = record.input if isinstance(record.input, dict) else {}
        namespace = str(inputs.get("namespace", ""))
        await self._audit.write(
            AuditEntry(
                who=record.by or record.name,
                action="transaction.recover",
                target=f"transactions/{namespace}/{record.id}",
                outcome=AuditOutcome.FAILED
                if outcome == EntryKind.STUCK.value
                else AuditOutcome.DONE,
                namespace=namespace,
                details={"transaction": record.id, "ended": outcome},
            )
        )
