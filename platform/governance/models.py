"""Policies, studies, manifests, reviews and approvals. Rules live in the services; nothing here changes state by itself."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from evidence.models import Entry
from organisations.models import Organisation, Silo
from portal.ids import study_id, uuid7


class Policy(models.Model):
    """A data-use policy that a hospital's steward signed, as received. The newest version is the current one."""

    silo = models.ForeignKey(Silo, on_delete=models.PROTECT, related_name="policies")
    version = models.PositiveIntegerField()
    digest = models.CharField(max_length=71, unique=True, help_text="sha256:.. of the signed payload")
    envelope = models.JSONField(help_text="DSSE envelope, verbatim")
    document = models.JSONField(help_text="the payload, parsed: for display and for predictions")
    received_at = models.DateTimeField(auto_now_add=True)
    current = models.BooleanField(default=True)

    class Meta:
        ordering = ("silo", "-version")
        constraints = (
            models.UniqueConstraint(fields=("silo", "version"), name="policy_version_once"),
            models.UniqueConstraint(fields=("silo",), condition=models.Q(current=True), name="policy_one_current"),
        )

    def __str__(self) -> str:
        return f"{self.silo_id} policy {self.version}"


class PolicyProposal(models.Model):
    """A policy that someone wrote on the portal; it means nothing until the hospital signs it at its own node."""

    class State(models.TextChoices):
        """open -> adopted (the hospital sent it signed) or replaced (a newer proposal)."""

        OPEN = "open", "waits for the hospital's signature"
        ADOPTED = "adopted", "signed by the hospital"
        REPLACED = "replaced", "replaced by a newer proposal"

    silo = models.ForeignKey(Silo, on_delete=models.CASCADE, related_name="policy_proposals")
    document = models.JSONField()
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"proposal {self.pk}"


class StudyState(models.TextChoices):
    """The life of a study; the arrows between the states are in `governance.states`."""

    DRAFT = "draft", "draft"
    SUBMITTED = "submitted", "waits for the network's admin"
    APPROVED = "approved", "waits for the hospitals"
    ACTIVE = "active", "active"
    RUNNING = "running", "running"
    PAUSED = "paused", "paused"
    COMPLETED = "completed", "completed"
    RELEASED = "released", "released"
    REJECTED = "rejected", "rejected"
    WITHDRAWN = "withdrawn", "withdrawn"
    EXPIRED = "expired", "expired"
    STOPPED = "stopped", "stopped"


class Study(models.Model):
    """A study; what is approved is never this row but one of its manifests."""

    id = models.CharField(primary_key=True, max_length=19, default=study_id, editable=False)
    title = models.CharField(max_length=200)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="studies")
    organisation = models.ForeignKey(Organisation, on_delete=models.PROTECT, related_name="studies")
    state = models.CharField(max_length=9, choices=StudyState.choices, default=StudyState.DRAFT, db_index=True)
    draft = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)
    submitted_at = models.DateTimeField(null=True, blank=True)
    activated_at = models.DateTimeField(null=True, blank=True)
    paused_reason = models.JSONField(null=True, blank=True, help_text='{"code", "sentence", "by"}')

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.title

    @property
    def manifest(self) -> Manifest | None:
        """The newest frozen manifest, or None for a draft that was never submitted."""
        return self.manifests.order_by("-number").first()

    @property
    def paused_by_admin(self) -> bool:
        """Whether an admin paused the study ("by": "admin"), and not its owner or the portal itself."""
        return (self.paused_reason or {}).get("by") == "admin"


class Manifest(models.Model):
    """One frozen version of a study: exactly the bytes that the hospitals approve."""

    study = models.ForeignKey(Study, on_delete=models.PROTECT, related_name="manifests")
    digest = models.CharField(max_length=71, unique=True)
    body = models.BinaryField(help_text="canonical JSON")
    number = models.PositiveIntegerField(help_text="1 for the first version of the study")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("study", "number")
        constraints = (models.UniqueConstraint(fields=("study", "number"), name="manifest_number_once"),)

    def __str__(self) -> str:
        return f"{self.study_id} v{self.number}"

    @property
    def data(self) -> bytes:
        """The canonical bytes; databases return buffers of several types."""
        return bytes(self.body)


class MatchPrediction(models.Model):
    """What a hospital's policy will say to a manifest, with reasons. A prediction: the silo alone decides."""

    manifest = models.ForeignKey(Manifest, on_delete=models.CASCADE, related_name="predictions")
    silo = models.ForeignKey(Silo, on_delete=models.CASCADE, related_name="predictions")
    decision = models.CharField(max_length=6, choices=[(name, name) for name in ("PERMIT", "REVIEW", "DENY")])
    reasons = models.JSONField(default=list, help_text='[{"code", "sentence", "change"}]')
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    made_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("silo",)
        constraints = (models.UniqueConstraint(fields=("manifest", "silo"), name="prediction_once"),)

    def __str__(self) -> str:
        return f"{self.manifest_id} {self.silo_id} {self.decision}"


class Review(models.Model):
    """The network admin's decision on a manifest: necessary and never sufficient."""

    class Decision(models.TextChoices):
        """Two answers; both need a reason."""

        APPROVE = "approve", "approved"
        REJECT = "reject", "rejected"

    manifest = models.ForeignKey(Manifest, on_delete=models.PROTECT, related_name="reviews")
    reviewer = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    decision = models.CharField(max_length=7, choices=Decision.choices)
    reason = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)
    entry = models.ForeignKey(Entry, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.manifest_id} {self.decision}"


class Approval(models.Model):
    """A statement signed at a hospital, as received and verified. The portal holds no key that could make one."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    manifest = models.ForeignKey(Manifest, on_delete=models.PROTECT, related_name="approvals")
    silo = models.ForeignKey(Silo, on_delete=models.PROTECT, related_name="approvals")
    decision = models.CharField(max_length=7, choices=[(name, name) for name in ("approve", "reject", "revoke")])
    envelope = models.JSONField(help_text="DSSE envelope, verbatim")
    digest = models.CharField(max_length=71, unique=True, help_text="sha256:.. of the signed payload")
    reason = models.TextField(blank=True)
    complete = models.BooleanField(default=True, help_text="False: valid, but more people must sign (k of n)")
    received_at = models.DateTimeField(auto_now_add=True)
    entry = models.ForeignKey(Entry, on_delete=models.PROTECT, related_name="+")

    class Meta:
        ordering = ("received_at",)
        indexes = (models.Index(fields=("manifest", "silo", "received_at"), name="approval_newest"),)

    def __str__(self) -> str:
        return f"{self.manifest_id} {self.silo_id} {self.decision}"
