"""The rows of a round. A round's state machine is rebuilt from them: `Round.stage` plus the messages that came in.

Round 1 --- n Seat           the silos that were asked, with their last sign of life
Round 1 --- n RoundMessage   the signed messages, one a (round, kind, silo)
Round 1 --- n Parcel         the sealed boxes, one for each two that share masks, while the round is open
Round 1 --- n ChunkReceipt   the pieces of masked updates that lie in the chunk store
Round 1 --- n SumChunk       the pieces of the sum that are done
Round 1 --- 1 RoundResult    what the masked tail said about the model that came in
Study 1 --- n GlobalModel    the models, number 0 first
Study 1 --- n UploadedModel  what its owner uploaded for it to start from
Study 1 --- n Rollback       proposals to go back to an earlier model, and what people decided
Study 1 --- 1 StudyRun       how many rounds failed in a row, and why training ended
"""

from __future__ import annotations

from datetime import UTC, datetime

from django.db import models
from django.utils import timezone


class Purpose(models.TextChoices):
    """What a round is for."""

    INITIAL = "initial", "agree on the first model"
    TRAIN = "train", "train"
    EVALUATE = "evaluate", "evaluate the last model"


class Stage(models.TextChoices):
    """What the portal waits for. A stage only changes by `UPDATE ... WHERE stage = <expected>`."""

    KEYS = "keys", "keys"
    ROW = "row", "opened rows"
    BUNDLES = "bundles", "sealed bundles"
    READY = "ready", "ready"
    UPDATE = "update", "updates"
    LIST = "list", "signed lists"
    SKETCH = "sketch", "sketches"
    SECOND = "second", "signed second lists"
    UNMASK = "unmask", "unmasking"
    SUM = "sum", "the sum"
    NONCE = "nonce", "opened nonces"
    CHECK = "check", "check words"
    STATE = "state", "the next state"
    FINISHED = "finished", "finished"
    FAILED = "failed", "failed"


CLOSED = (Stage.FINISHED, Stage.FAILED)
ORDER = tuple(stage for stage in Stage if stage != Stage.FAILED)
"""In the order of a round, which leaves out those that its protocol or its plan does not have. Each but the sum and the end
waits for the kind of message that has its name."""


class StudyRun(models.Model):
    """What the federation knows about a study besides its rounds; one row, made when the study is activated.

    Fields:
        failures_in_row: failed rounds since the last finished one or since a person resumed the study; three pause it.
        stop_cause: why training ended: "max_rounds" or "plateau".
    """

    study = models.OneToOneField("governance.Study", on_delete=models.PROTECT, related_name="run")
    activated_at = models.DateTimeField(default=timezone.now)
    resumed_at = models.DateTimeField(null=True)
    failures_in_row = models.PositiveSmallIntegerField(default=0)
    stop_cause = models.CharField(max_length=64, blank=True, default="")


class Round(models.Model):
    """One attempt at one round. `key` (`{study}.{number}.{attempt}`) is its name in URLs.

    Fields:
        number: 0 for the first model, then 1, 2, ...; attempt: from 1.
        manifest_digest: that of the manifest, so that a message is checked without a join.
        newest: true for the last round announced in its study, false for all before.
        model_digest: "sha256:.." of the model that goes in; null while the first model is being agreed on.
        model_length: words of the update, d; 0 where no update is asked for.
        announced, roster, ready_set, first_list, members: sorted silo names; null until the stage that fixes them.
            first_list is L1, whose updates came; members is whom the last signed list leaves in the sum: L1 too, or L2
            once the sketch check is over.
        total_weight: sum of the members' fixed weights (manifest).
        stage_at, deadline_at: when the present stage began and when it ends at the latest.
        failure: {"code", "sentence"} where the round failed.
        faults: [{"silo", "code", "sentence"}] what was wrong with single silos, in a round that went on.
        sum: the published facts (digest, words, tail, chunks, members, total_weight).
        sum_envelope: these facts, signed with the portal's answer key.
        sketches: what the sketch check found (services/sketches.py); null where there was none.
        verified: whether the check words of all members hold the sum (true), or one never came and the manifest lets the
            sum stand so (false); null until that is known.
        bytes_up: bytes of chunks received.
        worked_at: when tasks for the sum, or for its check, were last sent, so that the sweep sends them again only after
            a while.
    """

    study = models.ForeignKey("governance.Study", on_delete=models.PROTECT, related_name="rounds")
    manifest = models.ForeignKey("governance.Manifest", on_delete=models.PROTECT, related_name="rounds")
    manifest_digest = models.CharField(max_length=71)
    key = models.CharField(max_length=80, unique=True)
    number = models.PositiveIntegerField()
    attempt = models.PositiveIntegerField()
    purpose = models.CharField(max_length=8, choices=Purpose)
    stage = models.CharField(max_length=8, choices=Stage)
    newest = models.BooleanField(default=True)
    model_digest = models.CharField(max_length=71, null=True)  # noqa: DJ001 - null says that there is none yet
    model_length = models.PositiveBigIntegerField(default=0)
    announced = models.JSONField()
    roster = models.JSONField(null=True)
    ready_set = models.JSONField(null=True)
    first_list = models.JSONField(null=True)
    members = models.JSONField(null=True)
    total_weight = models.PositiveBigIntegerField(null=True)
    started_at = models.DateTimeField(default=timezone.now)
    stage_at = models.DateTimeField(default=timezone.now)
    deadline_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    worked_at = models.DateTimeField(null=True)
    failure = models.JSONField(null=True)
    faults = models.JSONField(default=list)
    sum = models.JSONField(null=True)
    sum_envelope = models.JSONField(null=True)
    sum_digest = models.CharField(max_length=71, null=True)  # noqa: DJ001
    next_model_digest = models.CharField(max_length=71, null=True)  # noqa: DJ001
    sketches = models.JSONField(null=True)
    verified = models.BooleanField(null=True)
    bytes_up = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ("study_id", "number", "attempt")
        constraints = (
            models.UniqueConstraint(fields=("study", "number", "attempt"), name="round_once"),
            models.UniqueConstraint(fields=("study",), condition=models.Q(newest=True), name="round_one_newest"),
        )
        indexes = (models.Index(fields=("stage",), name="round_stage"),)

    def __str__(self) -> str:
        return f"{self.key} ({self.stage})"

    @property
    def is_open(self) -> bool:
        return self.stage not in CLOSED


class Seat(models.Model):
    """One silo that was asked to take part in one round.

    `seen_at` is its last signed heartbeat for this round (null: none yet); `working_on` the stage that it named there.
    """

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="seats")
    silo = models.ForeignKey("organisations.Silo", on_delete=models.PROTECT, related_name="seats")
    seen_at = models.DateTimeField(null=True)
    working_on = models.CharField(max_length=32, blank=True, default="")

    class Meta:
        constraints = (models.UniqueConstraint(fields=("round", "silo"), name="seat_once"),)


class RoundMessage(models.Model):
    """One signed message of a silo. The same message again changes nothing; another one for the same place is refused.

    `late`: it came after its stage was over, was checked and kept, and nothing was derived from it. `digest`: of the payload
    that was verified when it came; a set of messages is known by these. `envelope`: {} of a `bundles` when the round is over.
    """

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="messages")
    kind = models.CharField(max_length=8)
    silo = models.ForeignKey("organisations.Silo", on_delete=models.PROTECT, related_name="round_messages")
    envelope = models.JSONField()
    digest = models.CharField(max_length=71)
    late = models.BooleanField(default=False)
    received_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("round", "kind", "silo"), name="message_once"),)
        # All that `mail.read_mail` asks for: with many silos it would else wade through every envelope for each message.
        indexes = (models.Index(fields=("round", "kind", "silo", "digest", "late"), name="message_header"),)


class Parcel(models.Model):
    """The box that one silo sealed to another, taken out of its signed `bundles`; no silo needs all of them.

    `hashes`: with many silos, of the shares in it; null where it holds none, and with few silos.
    """

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="parcels")
    sender = models.CharField(max_length=64)
    receiver = models.CharField(max_length=64)
    box = models.BinaryField()
    hashes = models.JSONField(null=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("round", "receiver", "sender"), name="parcel_once"),)

    def __str__(self) -> str:
        return f"{self.sender} to {self.receiver}"


class ChunkReceipt(models.Model):
    """One piece of a silo's masked update that lies in the chunk store; `digest` is of its bytes."""

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="chunks")
    silo = models.ForeignKey("organisations.Silo", on_delete=models.PROTECT, related_name="chunks")
    index = models.PositiveIntegerField()
    digest = models.CharField(max_length=71)
    size = models.PositiveBigIntegerField()
    received_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("round", "silo", "index"), name="chunk_once"),)


class SumChunk(models.Model):
    """One piece of the round's sum that lies in the chunk store, masks removed; `digest` is of its bytes."""

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="sum_chunks")
    index = models.PositiveIntegerField()
    digest = models.CharField(max_length=71)
    size = models.PositiveBigIntegerField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=("round", "index"), name="sum_chunk_once"),)


class SiloStage(models.Model):
    """When a silo said, by heartbeat, that it entered a stage of its own (gate, training, ...): for the lanes."""

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="silo_stages")
    silo = models.ForeignKey("organisations.Silo", on_delete=models.PROTECT, related_name="stages")
    stage = models.CharField(max_length=32)
    entered_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("round", "silo", "stage"), name="silo_stage_once"),)


class GlobalModel(models.Model):
    """One model of a study: number 0 first, then one a finished training round.

    Fields:
        digest: "sha256:.." of the file's bytes (ModelState.to_bytes); path: relative to the folder of models.
        length: number of shared weights, d; header: bytes before the vector in the file.
        states: the t State envelopes of silos that signed this digest; an announcement carries them.
    """

    study = models.ForeignKey("governance.Study", on_delete=models.PROTECT, related_name="models")
    digest = models.CharField(max_length=71)
    number = models.PositiveIntegerField()
    round = models.ForeignKey(Round, on_delete=models.PROTECT, null=True, related_name="made_models")
    length = models.PositiveBigIntegerField()
    size = models.PositiveBigIntegerField()
    path = models.CharField(max_length=200)
    states = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("study_id", "number")
        constraints = (models.UniqueConstraint(fields=("study", "number"), name="model_number_once"),)
        indexes = (models.Index(fields=("digest",), name="model_digest"),)


class UploadedModel(models.Model):
    """A model that the owner of a study uploaded for it, so that it may start from it; the file is in the model store.

    Digests are public: only what was uploaded for a study, by somebody who has the file, may be named in its plan.
    """

    study = models.ForeignKey("governance.Study", on_delete=models.PROTECT, related_name="uploaded_models")
    digest = models.CharField(max_length=71)
    size = models.PositiveBigIntegerField()
    tensors = models.PositiveIntegerField()
    length = models.PositiveBigIntegerField()
    uploaded_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("study", "digest"), name="uploaded_once"),)


class RoundResult(models.Model):
    """What the silos' own test patients said about the model that came into the round, from the summed tail only."""

    round = models.OneToOneField(Round, on_delete=models.CASCADE, related_name="result")
    model_number = models.PositiveIntegerField(default=0)
    loss = models.FloatField(null=True)
    auc_mean = models.FloatField(null=True)
    auc_std = models.FloatField(null=True)
    auc_pooled = models.FloatField(null=True)
    silos_with_auc = models.PositiveIntegerField(default=0)
    histograms = models.JSONField(default=list)


class SiloMetric(models.Model):
    """A silo's own AUC in clear, in millionths, where its hospital's policy allows sharing; null: one class only."""

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="metrics")
    silo = models.ForeignKey("organisations.Silo", on_delete=models.PROTECT, related_name="metrics")
    auc_micro = models.PositiveIntegerField(null=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("round", "silo"), name="metric_once"),)


class Rollback(models.Model):
    """A model of a study got worse: the proposal to go back to the best one before it, and what became of it.

    Fields:
        model: that got worse; back_to: the best model before it; round: whose evaluation said so.
        auc_micro, best_micro: securely summed mean AUC of both; error_micro: standard error of their difference, null where
            the sums do not give it. All in millionths.
        again: the later model that was as good again, where the proposal was withdrawn for that.
        reason: of the person who decided; entry: the newest evidence entry about this proposal.
        first_round: the first round that was announced from `back_to`; newest: number of the newest model then, so that
            those up to it are left behind. Both null until then.
    """

    class State(models.TextChoices):
        """open -> withdrawn (by itself), dismissed or rolled back (by a person)."""

        OPEN = "open", "waits for the network's admin"
        WITHDRAWN = "withdrawn", "withdrawn: a later model was as good again"
        DISMISSED = "dismissed", "dismissed"
        ROLLED_BACK = "rolled_back", "rolled back"

    study = models.ForeignKey("governance.Study", on_delete=models.PROTECT, related_name="rollbacks")
    model = models.ForeignKey(GlobalModel, on_delete=models.PROTECT, related_name="+")
    back_to = models.ForeignKey(GlobalModel, on_delete=models.PROTECT, related_name="+")
    round = models.ForeignKey(Round, on_delete=models.PROTECT, related_name="rollbacks")
    auc_micro = models.PositiveIntegerField()
    best_micro = models.PositiveIntegerField()
    error_micro = models.PositiveIntegerField(null=True)
    state = models.CharField(max_length=11, choices=State, default=State.OPEN)
    proposed_at = models.DateTimeField(default=timezone.now)
    decided_at = models.DateTimeField(null=True)
    decided_by = models.ForeignKey("organisations.User", on_delete=models.PROTECT, null=True, related_name="+")
    reason = models.TextField(blank=True, default="")
    again = models.ForeignKey(GlobalModel, on_delete=models.PROTECT, null=True, related_name="+")
    entry = models.ForeignKey("evidence.Entry", on_delete=models.PROTECT, related_name="+")
    first_round = models.ForeignKey(Round, on_delete=models.PROTECT, null=True, related_name="begins_again")
    newest = models.PositiveIntegerField(null=True)

    class Meta:
        ordering = ("study_id", "pk")
        constraints = (
            models.UniqueConstraint(fields=("study",), condition=models.Q(state="open"), name="rollback_one_open"),
        )

    def __str__(self) -> str:
        return f"roll-back {self.pk} ({self.state})"

    @property
    def auc(self) -> float:
        """Mean AUC of the model that got worse."""
        return self.auc_micro / 1e6

    @property
    def best_auc(self) -> float:
        """Mean AUC of the best model before it."""
        return self.best_micro / 1e6

    @property
    def drop(self) -> float:
        """By how much the mean AUC fell."""
        return (self.best_micro - self.auc_micro) / 1e6

    @property
    def error(self) -> float | None:
        """Its standard error; None where the sums do not give it."""
        return None if self.error_micro is None else self.error_micro / 1e6


def round_key(study: str, number: int, attempt: int) -> str:
    """The round's name in URLs: `{study}.{number}.{attempt}`."""
    return f"{study}.{number}.{attempt}"


def utc(moment: datetime) -> str:
    """RFC 3339 with milliseconds and Z, as in every message of the node API."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
