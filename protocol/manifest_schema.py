"""The fields of a study manifest, strictly: unknown fields, wrong types and loose numbers are refused.

A manifest is data, never code: names from allowlists with plain arguments. MONAI would run text that starts with `$` as
Python and follow `@` and `%` references, so such text is refused here, before anything can read it.

Cross-checks (one field against another) are methods named `_check_*`; each raises a ValueError that says what to
change.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from protocol.canonical import unb64
from protocol.duo import OBLIGATIONS
from protocol.manifest_fields import (
    Arguments,
    Country,
    Day,
    Digest,
    Layer,
    Line,
    Lines,
    Name,
    Part,
    PublicKey,
    Slug,
    Term,
    VerifierKey,
    unique,
)
from protocol.many_silos import MOST_SILOS
from protocol.secure_aggregation.parameters import threshold
from protocol.secure_aggregation.scales import FixedPoint, ScalesError
from protocol.secure_aggregation.sketch import LEAST_WORDS

SCHEMA: Final = "consilium/manifest/1"
"""The manifest format that this code reads and writes."""
MOST_DENSE: Final = 254
"""Participants of a study in which each silo masks with every other."""


class Ethics(Part):
    """An ethics committee's approval: its reference and the last day on which it is valid."""

    ref: Line = Field(min_length=1, max_length=200)
    expires: Day


class Purpose(Part):
    """What the study is for, as answers to the Data Use Ontology's questions."""

    kind: Literal["general", "hmb", "disease", "poa"]
    diseases: Annotated[tuple[Term, ...], AfterValidator(unique)]
    methods: bool
    commercial: bool
    all_non_profit: bool
    genetic: bool
    ethics: Ethics | None
    countries: Annotated[tuple[Country, ...], AfterValidator(unique)] = Field(min_length=1)
    accepts: Annotated[tuple[str, ...], AfterValidator(unique)]

    @model_validator(mode="after")
    def _check_diseases(self) -> Purpose:
        if self.kind == "disease" and not self.diseases:
            raise ValueError("diseases: a study of kind disease names at least one")
        if self.kind != "disease" and self.diseases:
            raise ValueError(f"diseases: only a study of kind disease names diseases; kind is {self.kind}")
        return self

    @model_validator(mode="after")
    def _check_accepts(self) -> Purpose:
        for term in self.accepts:
            if term not in OBLIGATIONS:
                raise ValueError(f"accepts: only the obligations {', '.join(sorted(OBLIGATIONS))} can be accepted")
        return self


class Cohort(Part):
    """Which images take part: DICOM modalities, and the fewest patients with which a hospital may run."""

    modalities: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Z0-9]{1,16}$")], ...], AfterValidator(unique)] = (
        Field(min_length=1)
    )
    min_patients: int = Field(ge=1)


class Network(Part):
    """A network of the hospital's allowlist. `constant` trains nothing; a hospital must allow it for itself."""

    name: Name
    args: Arguments


class Input(Part):
    """What a network sees: pixels (height, width), channels, and how intensities are mapped."""

    size: tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]]
    channels: int = Field(ge=1, le=16)
    window: Literal["full", "dicom"]


class Transform(Part):
    """A transform of the hospital's allowlist."""

    name: Name
    args: Arguments


class Optimiser(Part):
    """The local optimiser; learning rate and weight decay are per step."""

    name: Literal["adam", "adamw", "sgd"]
    lr: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0, le=10)


class Strategy(Part):
    """How the sum becomes the next model: next = model + server_lr * weighted mean of the updates."""

    name: Literal["fedavg"]
    server_lr: float = Field(gt=0, le=10)


class Stopping(Part):
    """Training ends after max_rounds, or once the metric has not risen by min_delta for `patience` rounds (null: never).

    worse_by: a model whose mean AUC lies by more than this below the best earlier one leads to a proposal to go back to
    that one, on which people decide (null: never).
    """

    max_rounds: int = Field(ge=1, le=10_000)
    patience: int | None = Field(ge=1, le=10_000)
    min_delta: float = Field(ge=0, le=1)
    worse_by: float | None = Field(gt=0, le=1)


class EvaluationPlan(Part):
    """Scores are binned into `bins` bins a class; only the securely summed bins leave."""

    bins: int = Field(ge=2, le=1024)


class SeedInitial(Part):
    """The first model is drawn from a seed, by our own integer generator (initial_model.py)."""

    kind: Literal["seed"]
    seed: int = Field(ge=0)


class PretrainedInitial(Part):
    """The first model is a file whose digest stands here."""

    kind: Literal["pretrained"]
    model: Digest


class Plan(Part):
    """Training, as data.

    frozen: names of layers, or of what holds them ("features" for "features.conv0.weight"), that stay as the first model
    has them: they are not trained and never sent.
    """

    network: Network
    input: Input
    transforms: tuple[Transform, ...] = Field(max_length=64)
    task: Literal["binary"]
    loss: Literal["bce", "bce_logit_adjusted"]
    optimiser: Optimiser
    batch: int = Field(ge=1, le=4096)
    local_epochs: int = Field(ge=1, le=1000)
    strategy: Strategy
    personalisation: Literal["none"]
    frozen: Annotated[tuple[Layer, ...], AfterValidator(unique)] = Field(max_length=256)
    stopping: Stopping
    evaluation: EvaluationPlan
    initial: Annotated[SeedInitial | PretrainedInitial, Field(discriminator="kind")]


class Aggregation(Part):
    """Secure aggregation: sizes, words on the wire, the L2 bound `clip_norm` of one update, and the checks.

    fraction_bits: binary places of the words; null: each tensor's scale follows the sum of the round before (scales.py).
    error_feedback: whether a hospital keeps what rounding and cutting took from an update, and adds it to its next one.
    sketch: whether each silo shows a sketch of its update, so that one out of bounds is left out before the unmasking.
    check_words: whether a sum may stand although a member's check word never came ("optional"), or never ("required").
    sparse_from: from that many participants on each silo masks with a neighbourhood (secure_aggregation/sparse).
    drawn: how many of the hospitals take part in each training round, drawn as participation.py says; null: all.
    """

    protocol: Literal["consilium-secagg/1"]
    min_roster: int = Field(ge=3, le=MOST_SILOS)
    min_participants: int = Field(ge=2, le=MOST_SILOS)
    word_bits: Literal[32, 24, 16, 12]
    fraction_bits: int | None = Field(ge=1, le=30)
    error_feedback: bool
    clip_norm: float = Field(gt=0, le=1e6)
    sketch: bool
    check_words: Literal["required", "optional"]
    sparse_from: int = Field(ge=4)
    drawn: int | None = Field(ge=3, le=254)


class Privacy(Part):
    """Noise on the updates: none yet, and said so on the approval page."""

    mode: Literal["none"]


class Participant(Part):
    """One hospital: its silo's name and key, and its fixed weight in the mean."""

    silo: Slug
    organisation: Line = Field(min_length=1, max_length=200)
    country: Country
    public: PublicKey
    weight: int = Field(ge=1, le=1000)


class Limits(Part):
    """Seconds that a round may take up to the upload, and that a signed list is waited for afterwards."""

    round_seconds: int = Field(ge=1)
    unmask_seconds: int = Field(default=86_400, ge=1)


class Dates(Part):
    """First and last day of the study."""

    start: Day
    end: Day

    @model_validator(mode="after")
    def _check_order(self) -> Dates:
        if self.end < self.start:
            raise ValueError("end: the study ends before it starts")
        return self


class Log(Part):
    """The portal's audit log, named by its verifier key."""

    vkey: VerifierKey


class Witnesses(Part):
    """Who cosigns the portal's log, and how many of them may be false."""

    vkeys: Annotated[tuple[VerifierKey, ...], AfterValidator(unique)]
    false: int = Field(default=0, ge=0)


class Manifest(Part):
    """One exact study. Its digest is the digest of its frozen bytes (manifest.freeze)."""

    schema_: Literal["consilium/manifest/1"] = Field(alias="schema")
    study: str = Field(pattern=r"^st-[a-z0-9][a-z0-9-]{0,62}$")
    title: Line = Field(min_length=1, max_length=200)
    summary: Lines = Field(max_length=4000)
    purpose: Purpose
    cohort: Cohort
    plan: Plan
    aggregation: Aggregation
    privacy: Privacy
    participants: tuple[Participant, ...] = Field(min_length=3, max_length=MOST_SILOS)
    limits: Limits
    dates: Dates
    log: Log
    witnesses: Witnesses

    @model_validator(mode="after")
    def _check_participants(self) -> Manifest:
        silos = [participant.silo for participant in self.participants]
        if silos != sorted(set(silos)):
            raise ValueError("participants: must be sorted by silo, each silo once")
        if len({participant.public for participant in self.participants}) != len(silos):
            raise ValueError("participants: two silos have the same key")
        missing = {participant.country for participant in self.participants} - set(self.purpose.countries)
        if missing:
            raise ValueError(
                f"purpose.countries: must also name the participants' countries {', '.join(sorted(missing))}"
            )
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Manifest:
        if self.aggregation.min_roster > len(self.participants):
            raise ValueError("aggregation.min_roster: more than there are participants")
        if self.aggregation.min_participants > self.aggregation.min_roster:
            raise ValueError(
                "aggregation.min_participants: may be min_roster at most, or the smallest round could never end"
            )
        drawn = self.aggregation.drawn
        if drawn is not None and not self.aggregation.min_roster <= drawn <= len(self.participants):
            raise ValueError(
                "aggregation.drawn: must be from min_roster to the number of participants, or null for all"
            )
        if self.witnesses.false and self.witnesses.false >= len(self.witnesses.vkeys):
            raise ValueError("witnesses.false: must be less than the number of witnesses")
        return self

    @model_validator(mode="after")
    def _check_many(self) -> Manifest:
        n, aggregation = len(self.participants), self.aggregation
        if not self.sparse:
            if n > MOST_DENSE:
                raise ValueError(
                    f"aggregation.sparse_from: {n} participants are more than {MOST_DENSE}, so it must be {n} at most"
                )
            return self
        if aggregation.sketch:
            raise ValueError(
                f"aggregation.sketch: with {n} participants (sparse_from {aggregation.sparse_from}) each masks with a "
                "neighbourhood, where there is no sketch check: set it to false, or sparse_from above the participants"
            )
        if aggregation.drawn is not None:
            raise ValueError(
                f"aggregation.drawn: with {n} participants (sparse_from {aggregation.sparse_from}) each masks with a "
                "neighbourhood, where all are asked: set it to null, or sparse_from above the participants"
            )
        return self

    @model_validator(mode="after")
    def _check_range(self) -> Manifest:
        """Proves that no sum of words can wrap round, and that a word says enough."""
        self.fixed_point()
        return self

    @property
    def sparse(self) -> bool:
        """Whether rounds speak the protocol for many silos: the manifest alone says so."""
        return len(self.participants) >= self.aggregation.sparse_from

    @property
    def least_roster(self) -> int:
        """The fewest silos with which a round can be begun; with many silos no set may be smaller than t of all."""
        least = self.aggregation.min_roster
        return max(least, threshold(len(self.participants))) if self.sparse else least

    def fixed_point(self) -> FixedPoint:
        """What the words of an update can hold. Raises ValueError where that is too little."""
        aggregation = self.aggregation
        weights = [participant.weight for participant in self.participants]
        try:
            return FixedPoint(
                word_bits=aggregation.word_bits,
                fraction_bits=aggregation.fraction_bits,
                clip_norm=aggregation.clip_norm,
                silos=len(weights),
                heaviest=max(weights),
                lightest=min(weights),
                crowd=LEAST_WORDS if aggregation.sketch else 1,
            )
        except ScalesError as error:
            raise ValueError(f"aggregation.fraction_bits: {error}") from None

    def participant(self, silo: str) -> Participant:
        """The entry of `silo`. Raises KeyError where it takes no part."""
        for participant in self.participants:
            if participant.silo == silo:
                return participant
        raise KeyError(silo)

    def public_keys(self) -> dict[str, bytes]:
        """Each participant's Ed25519 public key (32 bytes), by silo."""
        return {participant.silo: unb64(participant.public) for participant in self.participants}

    def total_weight(self, members: frozenset[str] | set[str] | list[str] | tuple[str, ...]) -> int:
        """The sum of the weights of `members`, the divisor of the mean. Raises KeyError for a stranger."""
        weights = {participant.silo: participant.weight for participant in self.participants}
        return sum(weights[silo] for silo in set(members))
