"""Organisations, people, memberships and silos. Rules live in `services`; nothing here changes state by itself."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.db import models

from portal.ids import uuid7


class User(AbstractUser):
    """A person with an account. The id is random: records of the evidence log name it and never the person."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)


class Organisation(models.Model):
    """A hospital (or the network's own office)."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    slug = models.SlugField(max_length=60, unique=True)
    name = models.CharField(max_length=200)
    country = models.CharField(max_length=2, help_text="ISO 3166-1 alpha-2, capitals")
    non_profit = models.BooleanField(default=True)
    contact_email = models.EmailField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Role(models.TextChoices):
    """What a person may do; admin and auditor belong to the network, the others to one organisation."""

    ADMIN = "admin", "network admin"
    STEWARD = "steward", "data steward"
    RESEARCHER = "researcher", "researcher"
    IT = "it", "hospital IT"
    AUDITOR = "auditor", "auditor"


class Membership(models.Model):
    """One role of one person in one organisation (null: in the network)."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    organisation = models.ForeignKey(
        Organisation, on_delete=models.CASCADE, related_name="memberships", null=True, blank=True
    )
    role = models.CharField(max_length=12, choices=Role.choices)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("user", "organisation", "role"), name="membership_once"),
            models.UniqueConstraint(
                fields=("user", "role"), condition=models.Q(organisation__isnull=True), name="membership_network_once"
            ),
            models.CheckConstraint(
                condition=models.Q(organisation__isnull=False) | models.Q(role__in=("admin", "auditor")),
                name="membership_role_needs_organisation",
            ),
        )


class SiloState(models.TextChoices):
    """invited (token given) -> pending (key sent) -> active (fingerprint confirmed) -> revoked."""

    INVITED = "invited", "invited"
    PENDING = "pending", "waiting for its fingerprint to be confirmed"
    ACTIVE = "active", "active"
    REVOKED = "revoked", "revoked"


class Silo(models.Model):
    """A hospital's node and its public keys. Only the hash of the enrolment token is kept."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.SlugField(max_length=60, unique=True)
    organisation = models.ForeignKey(Organisation, on_delete=models.PROTECT, related_name="silos")
    state = models.CharField(max_length=8, choices=SiloState.choices, default=SiloState.INVITED)
    token_hash = models.CharField(max_length=64, blank=True, help_text="SHA-256 of the one-time token, hex")
    token_expires_at = models.DateTimeField(null=True, blank=True)
    public_key = models.BinaryField(null=True, blank=True, help_text="Ed25519, 32 bytes")
    keyid = models.CharField(max_length=64, blank=True, db_index=True, help_text="SHA-256 of the public key, hex")
    trust = models.JSONField(null=True, blank=True, help_text="DSSE envelope of the hospital's trust.json")
    log_vkey = models.CharField(max_length=300, blank=True)
    witness_vkey = models.CharField(max_length=300, blank=True)
    version = models.CharField(max_length=40, blank=True, help_text="of the silo's software")
    enrolled_at = models.DateTimeField(null=True, blank=True)
    confirmed_by = models.ForeignKey(User, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    confirmed_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=("keyid",), condition=~models.Q(keyid=""), name="silo_key_once"),)

    def __str__(self) -> str:
        return self.name

    @property
    def public(self) -> bytes | None:
        """The public key as bytes (32), or None before enrolment; databases return buffers of several types."""
        return None if self.public_key is None else bytes(self.public_key)


class KeyRotation(models.Model):
    """One key of a silo followed another. A key is followed once and follows once: so no statement counts twice."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    silo = models.ForeignKey(Silo, on_delete=models.PROTECT, related_name="rotations")
    before = models.CharField(max_length=64, unique=True, help_text="keyid")
    after = models.CharField(max_length=64, unique=True, help_text="keyid")
    envelope = models.JSONField(help_text="what both keys signed")
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("at",)

    def __str__(self) -> str:
        return f"{self.before[:8]} -> {self.after[:8]}"
