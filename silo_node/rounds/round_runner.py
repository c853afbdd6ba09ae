"""One round at this silo, from the announcement to the next model's digest.

    announced   the gate has said yes      -> training starts at once, our key leaves, the set-up runs while it trains
    roster, bundles, ready                 -> checked and answered by `SiloRound`; R is fixed
    trained AND ready                      -> clip, quantise, journal, mask and send chunk by chunk, sign
    list, sketch, second, unmask           -> checked and answered by `SiloRound`
    sum, check, state                      -> nonce, check word, server step with the next state's digest (sum_check.py)
    closed                                 -> secrets destroyed, folder removed

Every step may come twice (after a crash, or because an answer got lost): the journal gives the same bytes again. A step
that the protocol forbids ends this silo's part with a reason; the others go on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from protocol.canonical import unb64
from protocol.evaluation import EvaluationError, encode_tail
from protocol.messages import Heartbeat, Metrics, Reason, seal
from protocol.model_state import ModelState, StateError, table_from_list
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.journal import StudyLedger
from protocol.secure_aggregation.parameters import threshold
from protocol.secure_aggregation.quantise import QuantisationError, clip, quantise
from protocol.secure_aggregation.records import Records
from protocol.secure_aggregation.scales import ScalesError, Segments
from protocol.secure_aggregation.silo import SiloRound
from protocol.secure_aggregation.sparse import SparseRound
from protocol.secure_aggregation.words import Lanes, lane
from protocol.signing import Envelope, SignatureError
from silo_node.errors import PortalRefused, Refused
from silo_node.gate import Permission, evaluated_key, trained_key
from silo_node.node import Node
from silo_node.rounds import error_feedback
from silo_node.rounds.announcement import Announcement
from silo_node.rounds.error_feedback import ErrorFeedback
from silo_node.rounds.model_store import ModelStore
from silo_node.rounds.refusals import TOO_LATE, Proof, send_refusal
from silo_node.rounds.round_parameters import round_parameters
from silo_node.rounds.runs import Run
from silo_node.rounds.sum_check import SumCheck
from silo_node.service import logs


class RoundRunner:
    """Drives `SiloRound` for one attempt. All methods are called from the main thread; `beat` from the heartbeat's.

    stage: what the silo is doing, for heartbeats and status. over: nothing more is done in this attempt. verified: whether
    all check words said that the sum is true; None where it was not judged. With many silos it is a `ManyRunner`.
    """

    MACHINE: ClassVar[type[SiloRound | SparseRound]] = SiloRound

    def __init__(
        self,
        node: Node,
        models: ModelStore,
        announcement: Announcement,
        permission: Permission,
        *,
        start_training: Callable[[str], None],
    ) -> None:
        self.announcement = announcement
        self.permission = permission
        self.id = announcement.id
        self.stage = "gate"
        self.over = False
        self.started = time.monotonic()
        self.train_seconds = 0.0
        self.evaluate_seconds = 0.0
        self.next_model: str | None = None
        self.verified: bool | None = None
        self._node = node
        self._models = models
        self._run = Run(node.config.runs, announcement.id)
        self._start_training = start_training
        self._log = logs.get().bind(study=announcement.study, round=announcement.id)
        self._ready = False
        self._sent = False
        self._resumed = False
        self._given: dict[str, dict[str, str]] = {}
        manifest = permission.manifest
        self._key = node.keys.silo
        self._silo: SiloRound | SparseRound | None = None
        self._records = Records(node.journal, announcement.study, announcement.number, announcement.attempt)
        self._fixed = manifest.fixed_point()
        self._segments: Segments = ()
        self._feedback: ErrorFeedback | None = None
        if announcement.model is not None:
            state = models.ensure(announcement.model, node.egress, round_id=self.id)
            if announcement.purpose == "train":
                self._segments = self._scales(state)
                if manifest.aggregation.error_feedback:
                    of = error_feedback.names(announcement.manifest, state.table)
                    self._feedback = ErrorFeedback(node.config.feedback, announcement.study, of)
            else:
                error_feedback.forget(node.config.feedback, announcement.study)  # nothing is trained any more
        self.parameters = round_parameters(announcement, manifest, self._segments)
        self._sum = SumCheck(node, self._run, self.parameters, manifest, self._segments)

    # --- the steps ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin or, after a restart, take up again: training first, because everything else runs beside it."""
        self._resumed = self._run.read("announce") is not None
        if not self._resumed:
            self._run.write("announce", dict(self.announcement.raw))
        self._silo = self.MACHINE(
            self.parameters,
            silo=self._node.config.name,
            key=self._key,
            journal=self._node.journal,
            known_partners=self.permission.known_partners,
            min_known=self.permission.min_known,
        )
        if self.announcement.purpose == "initial":
            self.stage = "table"
            self._train()
            return
        # The journal decides whether this attempt may be joined at all; only then is any image opened.
        envelope = self._silo.keys()
        note = trained_key if self.announcement.purpose == "train" else evaluated_key
        self._node.journal.put(note(self.announcement.study, self.announcement.model or ""), b"1")
        if self.announcement.origin is not None:
            origin, ledger = self.announcement.origin, StudyLedger(self._node.journal, self.announcement.study)
            ledger.work_on(self.announcement.model or "", origin.number, origin.attempt)
        self._train()
        self.stage = "training"
        self._post("keys", envelope)

    def on_roster(self, body: Mapping[str, Any]) -> None:
        """All signed keys: seal a bundle to each peer."""
        self._post("bundles", self._machine().accept_roster(*self._read(body, "keys")))

    def on_neighbours(self, body: Mapping[str, Any]) -> None:
        """Asked only where there are many silos. Raises: ProtocolViolation."""
        raise other_protocol("neighbours")

    def on_bundles(self, body: Mapping[str, Any]) -> None:
        """The peers' bundles: open them and say whose could be opened."""
        boxes = {str(sender): unb64(box) for sender, box in dict(body["boxes"]).items()}
        self._post("ready", self._machine().accept_bundles(boxes))

    def on_ready(self, body: Mapping[str, Any]) -> None:
        """The set R: from here the masks are fixed."""
        self._machine().accept_ready(*self._read(body, "ready"))
        self._ready = True
        self._upload()

    def on_trained(self) -> None:
        """Training has ended, well or not; its result lies in the round's folder."""
        result = self._run.result()
        if result is None or self.over:
            return
        if not result["ok"]:
            raise Refused(str(result["code"]), str(result["sentence"]))
        self.train_seconds = float(result["train_seconds"])
        self.evaluate_seconds = float(result["evaluate_seconds"])
        if self.announcement.purpose == "initial":
            self._first_state(result)
        else:
            if self.stage == "training":
                self.stage = "waiting"
            self._upload()

    def on_list(self, body: Mapping[str, Any]) -> None:
        """L1: sign it; spends (study, round)."""
        self.stage = "list"
        [updates] = self._read(body, "updates")
        self._post("list", self._machine().sign_list(updates))

    def on_sketch(self, body: Mapping[str, Any]) -> None:
        """The signed lists: their nonces make the seed under which this silo shows its one sketch."""
        self.stage = "sketch"
        [lists] = self._read(body, "lists")
        self._export("sketch", self._machine().show_sketch(lists))

    def on_second(self, body: Mapping[str, Any]) -> None:
        """All sketches: apply the rule, sign whom it leaves."""
        self.stage = "second"
        [sketches] = self._read(body, "sketches")
        # Named at the end, should the sum not be that of these sketches.
        self._run.write("sketches", self._given, sync=False)
        self._post("second", self._machine().sign_second(sketches))

    def on_unmask(self, body: Mapping[str, Any]) -> None:
        """t signatures on the list that is summed: reveal shares."""
        self.stage = "unmask"
        self._post("unmask", self._machine().unmask(*self._read(body, "lists", "seconds")))

    def on_sum(self, body: Mapping[str, Any]) -> None:
        """The portal is bound to a sum: open our nonce at once, because the others wait for it; then fetch the sum."""
        self.stage = "sum"
        lists, seconds = self._read(body, "lists", "seconds")
        self._post("nonce", self._sum.open_nonce(self._machine(), body, self._machine().agree(lists, seconds)))
        self._sum.fetch()

    def on_check(self, body: Mapping[str, Any]) -> None:
        """The nonces: send our check word."""
        self.stage = "check"
        [nonces] = self._read(body, "nonces")
        self._export("check", self._machine().send_check(nonces))

    def on_state(self, body: Mapping[str, Any]) -> None:
        """All check words: where the sum is true, compute the next state and sign its digest."""
        self.stage = "state"
        [checks] = self._read(body, "checks")
        self.verified = self._sum.verify(self._machine(), checks)
        digest = self._sum.make_next(self._models)
        if self._feedback is not None:
            # Only members of the list that was summed are given the check words.
            self._feedback.summed(self.id, digest)
        needed = self._signers_needed()
        if needed is not None:
            self._models.note_signers(digest, needed)
        self._post("state", self._machine().sign_state(digest))
        self.next_model = digest

    def proof(self) -> Proof:
        """The signed messages that the last step was given, with the sum's and the sketches that it is held against."""
        sketches = self._run.read("sketches") if self.stage == "state" else None
        return {**(sketches or {}), **self._given, **self._sum.proof()}

    def refuse(self, reasons: list[Reason], proof: Proof | None = None) -> None:
        """Take no further part, and say why: to the portal, in the log with the proof, on the status page."""
        self.over = True
        self.stage = "refused"
        if self._feedback is not None and any(each.code == "EXCLUDED" for each in reasons):
            self._feedback.left_out()
        send_refusal(self._node, self.announcement, self.parameters.attempt_ctx.hex(), reasons, proof)

    def destroy(self) -> None:
        """The attempt is over: its secrets and its folder are gone when this returns."""
        self.over = True
        if self._silo is not None:
            self._silo.destroy()
        self._sum.close()
        self._run.remove()

    def heartbeat(self) -> None:
        """Say that this silo lives. A lost heartbeat is no error: the next one follows."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = Heartbeat(
            ctx=self.parameters.attempt_ctx.hex(), silo=self._node.config.name, roster=None, stage=self.stage, at=at
        )
        envelope = seal(message, self._key)
        self._node.egress.post(
            f"/api/v1/rounds/{self.id}/heartbeat",
            envelope.as_dict(),
            kind="heartbeat",
            round_id=self.id,
            repeat=False,
        )

    # --- parts of steps ----------------------------------------------------------------------------------------------

    def _machine(self) -> Any:
        if self._silo is None:
            raise ProtocolViolation("OUT_OF_STAGE", "the round has not begun here")
        return self._silo

    def _train(self) -> None:
        if self._run.read("job") is None:
            if self.permission.cohort is not None:
                self.permission.cohort.save(self._run.cohort)
            plan = self.permission.manifest.plan
            self._run.write(
                "job",
                {
                    "study": self.announcement.study,
                    "purpose": self.announcement.purpose,
                    "number": self.announcement.number,
                    "plan": plan.model_dump(mode="json"),
                    "model": self.announcement.model,
                    "cohort": self.permission.cohort is not None,
                },
                sync=False,
            )
        self._start_training(self.id)

    def _first_state(self, result: Mapping[str, Any]) -> None:
        """The round that makes the first model: draw it, sign its digest with the table."""
        initial = self.permission.manifest.plan.initial
        table = table_from_list(result["table"])
        if initial.kind == "seed":
            digest = self._models.make_initial(table, initial.seed, self._fixed)
        else:
            try:
                digest = self._models.make_pretrained(
                    table, initial.model, self._fixed, self._node.egress, round_id=self.id
                )
            except StateError as error:
                sentence = f"The pretrained model does not fit the approved network: {error}."
                raise Refused("MODEL_DIFFERS", sentence) from None
        self._post("state", self._machine().sign_state(digest, table))
        self.next_model = digest
        self.stage = "waiting"

    def _upload(self) -> None:
        """Once training has ended and R is fixed: quantise (once), then send chunk by chunk."""
        result = self._run.result()
        if self._sent or not self._ready or result is None or not result["ok"] or self.over:
            return
        self.stage = "upload"
        machine = self._machine()
        if self._records.read("words") is None:
            # Rounding is random: only the first quantisation, in the journal, may ever be masked.
            machine.begin_update(self._quantised(), self._tail(result))
        there: set[int] = set()
        again, self._resumed = self._resumed, True
        if again:
            answer = self._node.egress.get(f"/api/v1/rounds/{self.id}/update", kind="update", round_id=self.id).json()
            there = pieces(answer)
        self._send_chunks(machine, there)
        envelope = machine.finish_update()
        self._post("update", envelope)
        self._sent = True
        size = sum(self.parameters.chunk_bytes(k) for k in range(self.parameters.chunk_count))
        self._note_export(envelope, "update", size)
        if self.permission.share_metrics:
            self._send_metrics(result)

    def _scales(self, state: ModelState) -> Segments:
        try:
            return self._fixed.segments(state.table, state.scales)
        except ScalesError as error:
            raise Refused("MODEL_DIFFERS", f"The model does not fit the approved study: {error}.") from None

    def _quantised(self) -> Lanes:
        words, model = self.parameters.words, self.parameters.model
        if words == 0 or model is None:
            return np.zeros(0, dtype=lane(self._fixed.word_bits))
        update, left = self._run.update(words), None
        if self._feedback is not None:
            owed = self._feedback.take(model, words)
            update = update if owed is None else update + owed
            left = np.empty(words, dtype="<f4")
        try:
            found = quantise(
                clip(update, self._fixed.clip_norm),
                self._fixed,
                self._segments,
                weight=self.permission.manifest.participant(self._node.config.name).weight,
                rng=np.random.default_rng(),
                residual=left,
            )
        except QuantisationError as error:
            raise Refused("UPDATE_NOT_VALID", f"The local update can't be sent: {error}.") from None
        if self._feedback is not None and left is not None:
            # Before the journal has the words: after a crash between the two they are quantised again.
            self._feedback.sent(self.id, model, left)
        return found

    def _tail(self, result: Mapping[str, Any]) -> NDArray[np.uint64]:
        histograms = np.array(result["histograms"], dtype=np.int64)
        try:
            return encode_tail(loss=result["loss"], auc=result["auc"], histograms=histograms)
        except EvaluationError as error:
            raise Refused("UPDATE_NOT_VALID", f"The local evaluation can't be sent: {error}.") from None

    def _send_chunks(self, machine: SiloRound | SparseRound, there: set[int]) -> None:
        """Chunk k travels while chunk k+1 is masked."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload") as pool:
            travelling: Future[None] | None = None
            for k in range(self.parameters.chunk_count):
                if k in there:
                    continue
                chunk = machine.masked_chunk(k)
                if travelling is not None:
                    travelling.result()
                travelling = pool.submit(self._put_chunk, k, chunk)
            if travelling is not None:
                travelling.result()

    def _put_chunk(self, k: int, chunk: bytes) -> None:
        self._node.egress.put(f"/api/v1/rounds/{self.id}/update/{k}", chunk, kind="update", round_id=self.id)

    def _export(self, kind: str, envelope: Envelope) -> None:
        """Something about the update leaves: noted before, so that nothing ever left that the log does not know."""
        self._note_export(envelope, kind, len(envelope.payload))
        self._post(kind, envelope)

    def _note_export(self, envelope: Envelope, kind: str, size: int) -> None:
        self._node.evidence.record(
            "update.exported",
            subject=("round", self.id, self.announcement.manifest),
            refs={"message": envelope.digest},
            data={"kind": kind, "bytes": size},
        )

    def _send_metrics(self, result: Mapping[str, Any]) -> None:
        auc = result["auc"]
        message = Metrics(
            ctx=self.parameters.attempt_ctx.hex(),
            silo=self._node.config.name,
            roster=None,
            auc_micro=None if auc is None else round(auc * 1_000_000),
        )
        self._post("metrics", seal(message, self._key))

    def _signers_needed(self) -> int | None:
        """t of this round's roster: how many must sign the model that is made here. None without a roster."""
        roster = self._records.read("roster")
        return None if roster is None else threshold(len(roster["keys"]))

    def _post(self, kind: str, envelope: Envelope) -> None:
        try:
            self._node.egress.post(f"/api/v1/rounds/{self.id}/{kind}", envelope.as_dict(), kind=kind, round_id=self.id)
        except PortalRefused as error:
            if error.code not in TOO_LATE:
                raise
            self._log.warning("round.too_late", kind=kind, code=error.code)
            return
        self._log.info("round.sent", kind=kind)

    def _read(self, body: Mapping[str, Any], *names: str) -> list[list[Envelope]]:
        """The signed messages under these names. Raises: ProtocolViolation (BAD_MESSAGE)."""
        self._given = {}
        try:
            found = {name: [Envelope.from_dict(item) for item in body[name]] for name in names}
        except (SignatureError, KeyError, TypeError) as error:
            raise ProtocolViolation("BAD_MESSAGE", f"the portal's {names[0]} can't be read: {error}") from None
        for name, envelopes in found.items():
            signed = ((envelope.signatures[0][0], envelope.digest) for envelope in envelopes)
            self._given[name] = {self.parameters.signers.get(keyid, keyid): digest for keyid, digest in signed}
        return list(found.values())


def pieces(answer: Any) -> set[int]:
    """Which pieces of the update the portal has. Raises: ProtocolViolation (BAD_MESSAGE)."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get("chunks"), list):
        raise ProtocolViolation("BAD_MESSAGE", "the portal does not say which pieces of the update it has")
    return {k for k in answer["chunks"] if type(k) is int}


def other_protocol(kind: str) -> ProtocolViolation:
    """The portal asks for a step that rounds of this study do not have: the manifest says which protocol they speak."""
    return ProtocolViolation("OTHER_PROTOCOL", f"the rounds of this study have no step {kind}, by its approved plan")
