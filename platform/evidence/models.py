"""Rows of the audit log. Entries are only ever added; the one change allowed later is the erasure of a private payload."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from portal.ids import uuid7


class Entry(models.Model):
    """One record, written in the transaction of the act that it records; the sequencer gives it its index later."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    time = models.DateTimeField(db_index=True)
    type = models.CharField(max_length=40, db_index=True)
    outcome = models.CharField(max_length=8)
    subject_kind = models.CharField(max_length=24)
    subject_id = models.CharField(max_length=100)
    actor_id = models.CharField(max_length=100)
    record = models.BinaryField(help_text="canonical JSON, at most 65,535 bytes: the leaf's data")
    private = models.JSONField(null=True, blank=True, help_text="outside the leaf, erasable")
    salt = models.BinaryField(null=True, blank=True, help_text="32 bytes, erased with the payload")
    leaf_hash = models.BinaryField(help_text="SHA-256(0x00 || record), 32 bytes")
    index = models.BigIntegerField(null=True, blank=True, unique=True, help_text="place in the log; null: not yet")

    class Meta:
        ordering = ("time", "id")
        indexes = (
            models.Index(fields=("subject_kind", "subject_id"), name="entry_subject"),
            models.Index(fields=("id",), condition=Q(index__isnull=True), name="entry_waiting"),
        )

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class LogCheckpoint(models.Model):
    """One signed checkpoint of the portal's log."""

    size = models.BigIntegerField(unique=True)
    root = models.BinaryField(help_text="RFC 6962 root, 32 bytes")
    note = models.TextField(help_text="signed note, verbatim")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("size",)

    def __str__(self) -> str:
        return f"checkpoint {self.size}"


class LogLock(models.Model):
    """One row: whoever holds its lock is the sequencer (PostgreSQL; SQLite's IMMEDIATE transactions do the same)."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)

    def __str__(self) -> str:
        return "log lock"
