"""The signed sets after the list L1, read the same way by silo and coordinator: sketches, L2, second nonces, check words.

Every function raises `ProtocolViolation` and returns only what it verified, as in sets.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Check, ListSignature, Nonce, SecondList, Sketch
from protocol.secure_aggregation import check_word, sealing, sets, sketch
from protocol.secure_aggregation.check_word import CheckWord
from protocol.secure_aggregation.errors import ProtocolViolation
from protocol.secure_aggregation.parameters import RoundParameters, SketchTerms
from protocol.secure_aggregation.sets import ListView, ReadyView, RosterView
from protocol.signing import Envelope


@dataclass(frozen=True)
class NoncesView:
    """Opened nonces. digest: names the signed messages that hold them; seed: 32 bytes that follow from them."""

    digest: str
    seed: bytes


@dataclass(frozen=True)
class SketchesView:
    """All sketches of a round. digest: names the signed messages; nonces: those of their seed; sums: silo -> int64[256]."""

    digest: str
    nonces: str
    sums: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class FinalList:
    """Whose updates are summed: L2 where the manifest has the sketch check, else L1.

    members: sorted. first: L1, within which they lie. sketches: digest of all sketches, None without the check.
    """

    members: tuple[str, ...]
    first: ListView
    sketches: str | None


# --- 6. sketches and L2 ----------------------------------------------------------------------------------------------


def terms_of(parameters: RoundParameters) -> SketchTerms:
    """Raises: ProtocolViolation (NO_SKETCH) where the manifest asks for no sketch."""
    if parameters.sketch is None:
        raise ProtocolViolation("NO_SKETCH", "this round has no sketch check; no sketch is made and none is read")
    return parameters.sketch


def sketch_nonces(
    parameters: RoundParameters, roster: RosterView, ready: ReadyView, envelopes: Iterable[Envelope]
) -> tuple[ListView, NoncesView]:
    """L1 as at least t of its members signed it, and the seed that follows from the nonces that came with it.

    Raises: ProtocolViolation as `sets.read_lists`.
    """
    signed = list(envelopes)
    view = sets.read_lists(parameters, roster, ready, signed)
    lists, by_silo = sets.open_all(parameters, ListSignature, signed, roster)
    nonces = {silo: message.nonce for silo, message in lists.items()}
    return view, NoncesView(sets.set_digest(by_silo), sketch.seed_of(parameters.ctx, nonces, view.digest))


def check_sketch(view: ListView, nonces: str, message: Sketch) -> NDArray[np.int64]:
    """One sketch of this list under this seed. Raises: ProtocolViolation (OUTSIDE_PARENT, OTHER_SET)."""
    if message.silo not in view.members:
        raise ProtocolViolation("OUTSIDE_PARENT", f"{message.silo} is not in the list and shows no sketch")
    if message.first_list != view.digest or message.nonces != nonces:
        raise ProtocolViolation("OTHER_SET", f"the sketch of {message.silo} is of another list or seed")
    return np.frombuffer(message.sums, dtype="<i8").astype(np.int64)


def read_sketches(
    parameters: RoundParameters, roster: RosterView, view: ListView, nonces: str, envelopes: Iterable[Envelope]
) -> SketchesView:
    """All sketches. Raises: ProtocolViolation (TWICE, SET_TOO_SMALL, `check_sketch`, `sets.open_signed`)."""
    messages, signed = sets.open_all(parameters, Sketch, envelopes, roster)
    sums = {silo: check_sketch(view, nonces, message) for silo, message in messages.items()}
    sets.check_size(parameters, roster, len(sums), "set of silos that showed a sketch")
    return SketchesView(sets.set_digest(signed), nonces, sums)


def judge(parameters: RoundParameters, sketches: SketchesView) -> sketch.Verdict:
    """The manifest's rule over all sketches; everybody who has them comes to the same set, large enough or not."""
    terms = terms_of(parameters)
    weights = {silo: terms.weights[silo] for silo in sketches.sums}
    return sketch.judge(sketches.sums, weights, clip_norm=terms.clip_norm, segments=terms.segments)


def apply_rule(parameters: RoundParameters, roster: RosterView, sketches: SketchesView) -> sketch.Verdict:
    """As `judge`. Raises: ProtocolViolation (SET_TOO_SMALL) where the rule leaves too few."""
    verdict = judge(parameters, sketches)
    sets.check_size(parameters, roster, len(verdict.members), "second list")
    return verdict


def total_of(sketches: SketchesView, members: Iterable[str]) -> NDArray[np.int64]:
    """The sum of the members' sketches, modulo 2^64; the sketch of an honest sum lies far within."""
    rows = [sketches.sums[silo] for silo in members]
    total: NDArray[np.int64] = np.sum(rows, axis=0, dtype=np.int64)
    return total


def compare_sketches(
    parameters: RoundParameters, seed: bytes, total: NDArray[np.int64], body: Iterable[NDArray[np.int32]]
) -> None:
    """The sketch of the sum is the sum of the members' sketches, exactly.

    Raises:
        ProtocolViolation: SKETCH_DIFFERS.
    """
    found = sketch.sketch(seed, terms_of(parameters).segments, body, word_bits=parameters.word_bits)
    if not np.array_equal(found, total):
        raise ProtocolViolation(
            "SKETCH_DIFFERS",
            "the sketch of the sum is not the sum of the members' sketches: the portal, or a member, is false; the sum "
            "is thrown away",
        )


def check_second(parameters: RoundParameters, roster: RosterView, first: ListView, message: SecondList) -> FinalList:
    """One signature on L2. Raises: ProtocolViolation (OUTSIDE_PARENT, OTHER_SET, SET_TOO_SMALL)."""
    if not set(message.members) <= set(first.members) or message.silo not in message.members:
        raise ProtocolViolation(
            "OUTSIDE_PARENT", f"the second list of {message.silo} reaches outside the first or misses it"
        )
    if message.first_list != first.digest:
        raise ProtocolViolation("OTHER_SET", f"the second list of {message.silo} is of another first list")
    sets.check_size(parameters, roster, len(message.members), "second list")
    return FinalList(message.members, first, message.sketches)


def read_final(
    parameters: RoundParameters,
    roster: RosterView,
    ready: ReadyView,
    lists: Iterable[Envelope],
    seconds: Iterable[Envelope],
) -> FinalList:
    """The one list that at least t of its members signed in its last form.

    Parameters:
        lists: signed L1.   seconds: signed L2; none where the manifest has no sketch check.

    Raises:
        ProtocolViolation: TWO_LISTS, TOO_FEW_SIGNATURES, NO_SKETCH (seconds without the check), `sets.read_lists`,
            `check_second`.
    """
    first = sets.read_lists(parameters, roster, ready, lists)
    messages, _ = sets.open_all(parameters, SecondList, seconds, roster)
    if parameters.sketch is None:
        if messages:
            raise ProtocolViolation("NO_SKETCH", "this round has no sketch check, so it has no second list")
        return FinalList(first.members, first, None)
    views = {check_second(parameters, roster, first, message) for message in messages.values()}
    if len(views) > 1:
        raise ProtocolViolation("TWO_LISTS", "the silos signed different second lists; nothing is revealed")
    if len(messages) < roster.threshold:
        raise ProtocolViolation(
            "TOO_FEW_SIGNATURES", f"{len(messages)} silos signed the second list, {roster.threshold} are needed"
        )
    return views.pop()


# --- 8. second nonces and check words --------------------------------------------------------------------------------


def check_nonce(
    parameters: RoundParameters, ready: ReadyView, final: FinalList, published: str, message: Nonce
) -> None:
    """One opened nonce for this sum. Raises: ProtocolViolation (OUTSIDE_PARENT, OTHER_SUM, BAD_NONCE)."""
    check_sum(final.members, published, message)
    expected = ready.ready[message.silo].nonces[1]
    if not sealing.fits("nonce 2", message.nonce, expected, ctx=parameters.ctx, silo=message.silo):
        raise ProtocolViolation("BAD_NONCE", f"the second nonce of {message.silo} is not the one it committed to")


def read_nonces(
    parameters: RoundParameters,
    roster: RosterView,
    ready: ReadyView,
    final: FinalList,
    published: str,
    envelopes: Iterable[Envelope],
) -> NoncesView:
    """The opened nonces of all members; of at least t where the manifest lets a sum stand without a check word.

    Where all are needed, because all check words are, the portal has no choice: of 40 silos it could else try 2^34 sets of
    nonces after it read them, and so as many coefficients for the false sum that it published.

    Raises: ProtocolViolation (TWICE, TOO_FEW_SIGNATURES, `check_nonce`).
    """
    messages, signed = sets.open_all(parameters, Nonce, envelopes, roster)
    for message in messages.values():
        check_nonce(parameters, ready, final, published, message)
    least = roster.threshold if parameters.unverified else len(final.members)
    if len(messages) < least:
        raise ProtocolViolation("TOO_FEW_SIGNATURES", f"{len(messages)} silos opened their nonces, {least} are needed")
    nonces = {silo: message.nonce for silo, message in messages.items()}
    return NoncesView(sets.set_digest(signed), check_word.seed_of(parameters.ctx, published, nonces))


def check_check(members: Collection[str], published: str, nonces: str, message: Check) -> None:
    """One check word for this sum and these nonces. Raises: ProtocolViolation (OUTSIDE_PARENT, OTHER_SUM, OTHER_SET)."""
    check_sum(members, published, message)
    if message.nonces != nonces:
        raise ProtocolViolation("OTHER_SET", f"the check word of {message.silo} is for other nonces")


def read_checks(
    parameters: RoundParameters,
    roster: RosterView,
    final: FinalList,
    published: str,
    nonces: str,
    envelopes: Iterable[Envelope],
) -> int | None:
    """What the members' check words add up to; None where one is missing and the manifest lets the sum stand so.

    Raises: ProtocolViolation (TWICE, CHECK_MISSING, BAD_CHECK, `check_check`).
    """
    messages, _ = sets.open_all(parameters, Check, envelopes, roster)
    return add_checks(parameters, final.members, published, nonces, messages)


def add_checks(
    parameters: RoundParameters,
    members: Collection[str],
    published: str,
    nonces: str,
    messages: Mapping[str, Check],
) -> int | None:
    """As `read_checks`, of messages (by silo) whose signatures were verified."""
    for message in messages.values():
        check_check(members, published, nonces, message)
    try:
        total = check_word.add_up(message.word for message in messages.values())
    except ValueError as error:
        raise ProtocolViolation("BAD_CHECK", str(error)) from error
    missing = sorted(set(members) - set(messages))
    if not missing:
        return total
    if not parameters.unverified:
        raise ProtocolViolation(
            "CHECK_MISSING",
            f"the check words of {', '.join(missing)} are missing; without them the sum is not believed",
        )
    return None


def compare_words(
    parameters: RoundParameters,
    seed: bytes,
    expected: int,
    body: Iterable[NDArray[np.int32]],
    tail: NDArray[np.uint64],
) -> None:
    """The check word of the sum is the sum of the members' check words.

    Raises:
        ProtocolViolation: SUM_NOT_TRUE.
    """
    if own_word(parameters, seed, body, [tail]) != expected:
        raise ProtocolViolation(
            "SUM_NOT_TRUE",
            "the published sum is not the sum of what the members sent: the portal, or a member, is false",
        )


def own_word(
    parameters: RoundParameters, seed: bytes, body: Iterable[NDArray[np.int32]], tail: Iterable[NDArray[np.uint64]]
) -> int:
    """The check word of a vector: its body as signed words, in order, and its tail."""
    word = CheckWord(seed, parameters.ctx)
    for block in body:
        word.body(block)
    for words in tail:
        word.tail(words)
    return word.value


def check_sum(members: Collection[str], published: str, message: Nonce | Check) -> None:
    """The message is a member's and is for this sum. Raises: ProtocolViolation (OUTSIDE_PARENT, OTHER_SUM)."""
    if message.silo not in members:
        raise ProtocolViolation("OUTSIDE_PARENT", f"{message.silo} is not in the list that was summed")
    if message.sum != published:
        raise ProtocolViolation("OTHER_SUM", f"the {message.STAGE} of {message.silo} is for another sum")
