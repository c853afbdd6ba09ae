"""What the approved manifest says about rounds, read once a process: a manifest never changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from federation.models import Purpose, Round
from federation.services.mail import Pile
from federation.services.models import front_of
from governance.models import Manifest as ManifestRow
from protocol.agreed_parameters import agreed_parameters
from protocol.manifest import Manifest, parse_manifest
from protocol.secure_aggregation.checks import FinalList, NoncesView, SketchesView
from protocol.secure_aggregation.coordinator import Coordinator
from protocol.secure_aggregation.parameters import RoundParameters, threshold
from protocol.secure_aggregation.scales import FixedPoint
from protocol.secure_aggregation.sets import ListView, ReadyView, RosterView
from protocol.secure_aggregation.sketch import Verdict


@dataclass(frozen=True, slots=True)
class Facts:
    """The parts of a manifest that rounds need.

    participants: silo -> Ed25519 public key (32 bytes); weights: silo -> fixed weight; hospitals: silo -> name.
    fixed: what the words of an update can hold.
    unverified: whether a sum may stand although a check word never came.
    patience: rounds without a gain of min_delta in AUC that end the training, None: never.
    worse_by: how far below the best earlier AUC a model leads to a proposal to go back, None: never.
    drawn: how many of the silos are asked to take part in a training round, None: all.
    seed: of the first model, or None where `pretrained` names its digest.
    """

    manifest: Manifest
    study: str
    participants: Mapping[str, bytes]
    weights: Mapping[str, int]
    hospitals: Mapping[str, str]
    min_participants: int
    fixed: FixedPoint
    unverified: bool
    drawn: int | None
    server_lr: float
    max_rounds: int
    patience: int | None
    min_delta: float
    worse_by: float | None
    round_seconds: int
    unmask_seconds: int
    seed: int | None
    pretrained: str | None

    @property
    def sparse(self) -> bool:
        """Whether rounds speak the protocol for many silos (secure_aggregation/sparse)."""
        return self.manifest.sparse

    @property
    def least_set(self) -> int:
        """With many silos: the smallest size of any set, counted over all participants."""
        return max(threshold(len(self.participants)), self.min_participants)

    def least_signers(self, silos: int) -> int:
        """How many must sign what all agree on, in a roster of so many silos."""
        return threshold(len(self.participants) if self.sparse else silos)


def read_facts(body: bytes) -> Facts:
    """The facts of a frozen manifest. Raises ManifestError for bytes that are none."""
    manifest = parse_manifest(body)
    plan, aggregation = manifest.plan, manifest.aggregation
    initial = plan.initial
    return Facts(
        manifest=manifest,
        study=manifest.study,
        participants=manifest.public_keys(),
        weights={each.silo: each.weight for each in manifest.participants},
        hospitals={each.silo: each.organisation for each in manifest.participants},
        min_participants=aggregation.min_participants,
        fixed=manifest.fixed_point(),
        unverified=aggregation.check_words == "optional",
        drawn=aggregation.drawn,
        server_lr=plan.strategy.server_lr,
        max_rounds=plan.stopping.max_rounds,
        patience=plan.stopping.patience,
        min_delta=plan.stopping.min_delta,
        worse_by=plan.stopping.worse_by,
        round_seconds=manifest.limits.round_seconds,
        unmask_seconds=manifest.limits.unmask_seconds,
        seed=initial.seed if initial.kind == "seed" else None,
        pretrained=initial.model if initial.kind == "pretrained" else None,
    )


@lru_cache(maxsize=256)
def facts_of(digest: str) -> Facts:
    """The facts of the manifest with this digest; the first call in a process reads it from the database."""
    return read_facts(bytes(ManifestRow.objects.values_list("body", flat=True).get(digest=digest)))


def parameters_of(item: Round) -> RoundParameters:
    """What all parties of this attempt agree on; `SparseParameters` where there are many silos."""
    words = item.model_length if item.purpose == Purpose.TRAIN else 0
    return _parameters(item.manifest_digest, item.number, item.attempt, item.model_digest, words)


@lru_cache(maxsize=64)
def _parameters(manifest: str, number: int, attempt: int, model: str | None, words: int) -> RoundParameters:
    facts, segments = facts_of(manifest), ()
    if facts.manifest.aggregation.sketch and words:  # else the model need not be read
        front = front_of(model or "")
        segments = facts.fixed.segments(front.table, front.scales)
    return agreed_parameters(
        facts.manifest,
        digest=manifest,
        number=number,
        attempt=attempt,
        model=model,
        words=words,
        segments=segments,
    )


class RememberingCoordinator(Coordinator):
    """A coordinator that verifies each set once a process, however many messages are held against it.

    It takes messages as `Pile`s and remembers of each kind of set the last one that it read, by the digests that were stored
    when the messages were verified one by one. Another message, or one more, is another set: read and verified anew.
    """

    def __init__(self, parameters: RoundParameters) -> None:
        super().__init__(parameters)
        self._last: dict[str, tuple[object, Any]] = {}

    def _once(self, what: str, make: Callable[..., Any], *given: RosterView | FinalList | Pile | str) -> Any:
        # A roster's digest names its keys, and the rest is small: what is kept holds no messages besides the views.
        key = tuple(
            each.key if isinstance(each, Pile) else each.digest if isinstance(each, RosterView) else each
            for each in given
        )
        known, view = self._last.get(what, (None, None))
        if known != key:
            view = make(*given)
            self._last[what] = (key, view)
        return view

    def roster(self, envelopes: Pile) -> RosterView:
        """As the parent's, remembered; so are all below."""
        return self._once("roster", super().roster, envelopes)

    def ready(self, roster: RosterView, ready_envelopes: Pile) -> ReadyView:
        return self._once("ready", super().ready, roster, ready_envelopes)

    def list_of(self, roster: RosterView, ready_envelopes: Pile, update_envelopes: Pile) -> ListView:
        return self._once("list", super().list_of, roster, ready_envelopes, update_envelopes)

    def first(self, roster: RosterView, ready_envelopes: Pile, list_envelopes: Pile) -> tuple[ListView, NoncesView]:
        return self._once("first", super().first, roster, ready_envelopes, list_envelopes)

    def sketches(self, roster: RosterView, *envelopes: Pile) -> SketchesView:
        return self._once("sketches", super().sketches, roster, *envelopes)

    def judge(self, roster: RosterView, *envelopes: Pile) -> tuple[SketchesView, Verdict]:
        return self._once("judge", super().judge, roster, *envelopes)

    def final(self, roster: RosterView, *envelopes: Pile) -> FinalList:
        return self._once("final", super().final, roster, *envelopes)

    def nonces(
        self, roster: RosterView, ready_envelopes: Pile, final: FinalList, published: str, nonce_envelopes: Pile
    ) -> NoncesView:
        return self._once("nonces", super().nonces, roster, ready_envelopes, final, published, nonce_envelopes)


_coordinators: dict[str, RememberingCoordinator] = {}


def coordinator_of(item: Round) -> RememberingCoordinator:
    """The protocol's portal side for this attempt; those of the last few rounds are kept."""
    found = _coordinators.get(item.key)
    if found is None:
        while len(_coordinators) >= 16:
            _coordinators.pop(next(iter(_coordinators)), None)
        found = _coordinators[item.key] = RememberingCoordinator(parameters_of(item))
    return found
