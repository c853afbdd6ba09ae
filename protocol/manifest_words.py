"""The study in plain words, for the people who decide about it: the portal's page and `silo approve` print the same
lines.

Everything is said from the manifest alone, so that the words cannot promise what the signature does not cover.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING, Any

from protocol.duo import TERMS, load_closure
from protocol.evaluation import tail_length
from protocol.many_silos import COLLUDING

if TYPE_CHECKING:
    from protocol.manifest_schema import Manifest

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_MODALITIES = {
    "CR": "computed radiography", "DX": "digital radiography", "CT": "computed tomography", "MR": "magnetic resonance",
    "MG": "mammography", "US": "ultrasound", "NM": "nuclear medicine", "PT": "positron emission tomography",
    "OP": "ophthalmic photography", "OPT": "ophthalmic tomography", "XA": "X-ray angiography", "RF": "fluoroscopy",
    "SM": "slide microscopy", "ES": "endoscopy", "XC": "photography",
}  # fmt: skip


def threshold(n: int) -> int:
    """t: how many of n silos must take part in rebuilding masks, floor(2n/3) + 1."""
    return 2 * n // 3 + 1


def withstood_colluders(manifest: Manifest) -> int:
    """c: with how many participants the portal may conspire without learning one hospital's update.

    c <= 2t - n - 1 for every roster size n that the manifest allows, and c <= min_participants - 2. With many silos one
    in five, and no more than leave two others in the smallest set.
    """
    aggregation = manifest.aggregation
    if manifest.sparse:
        n = len(manifest.participants)
        return min(smallest_list(manifest) - 2, math.floor(COLLUDING * n))
    sizes = range(aggregation.min_roster, len(manifest.participants) + 1)
    return min(aggregation.min_participants - 2, *(2 * threshold(n) - n - 1 for n in sizes))


def smallest_list(manifest: Manifest) -> int:
    """The fewest silos over which a sum is made: every silo computes it from the manifest."""
    aggregation = manifest.aggregation
    n = len(manifest.participants) if manifest.sparse else aggregation.min_roster
    return max(aggregation.min_participants, threshold(n))


def describe(manifest: Manifest, *, weights: int | None = None) -> list[tuple[str, str]]:
    """(label, sentences) in the order in which a steward should read them.

    Parameters: weights: how many the network has, where that is known already (after the first round).
    """
    return [
        ("Study", _join([_sentence(manifest.title), manifest.summary])),
        ("Purpose", _purpose(manifest)),
        ("Ethics approval", _ethics(manifest)),
        ("Images", _images(manifest)),
        ("Training", _training(manifest)),
        ("What leaves the hospital", _leaves(manifest, weights)),
        ("What the portal can read", _portal_reads(manifest)),
        ("Who would have to conspire", _conspire(manifest)),
        ("Privacy of patients", _privacy()),
        ("Partners", _partners(manifest)),
        ("Obligations", _obligations(manifest)),
        ("Duration", _duration(manifest)),
        ("Proof", _proof(manifest)),
    ]


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 round`, `2 rounds`, `7,000,000 rounds`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    known = list(items)
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} and {known[-1]}"


def day(text: str) -> str:
    """`2027-06-30` as `30 June 2027`."""
    value = date.fromisoformat(text)
    return f"{value.day} {_MONTHS[value.month - 1]} {value.year}"


def duration(seconds: int) -> str:
    """Seconds in the largest units that stay exact: `10 minutes`, `1 day`, `90 seconds`."""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds % size == 0:
            return count(seconds // size, unit)
    return count(seconds, "second")


def _join(sentences: Iterable[str]) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _purpose(manifest: Manifest) -> str:
    purpose = manifest.purpose
    kinds = {
        "general": "Research of any kind, not only on health.",
        "hmb": "Health, medical or biomedical research.",
        "poa": "Research on the origins or ancestry of populations.",
    }
    return _join(
        [
            f"Research on {listed(load_closure().label(disease) for disease in purpose.diseases)}."
            if purpose.kind == "disease"
            else kinds[purpose.kind],
            "It also develops methods." if purpose.methods else "It does not set out to develop methods.",
            "The result may be used commercially." if purpose.commercial else "The result is not used commercially.",
            "All partners are not-for-profit organisations."
            if purpose.all_non_profit
            else "At least one partner works for profit.",
            "It is a genetic study." if purpose.genetic else "No genetic data are used.",
        ]
    )


def _ethics(manifest: Manifest) -> str:
    ethics = manifest.purpose.ethics
    if ethics is None:
        return "None is attached."
    late = " It ends before the study does." if ethics.expires < manifest.dates.end else ""
    return f"{ethics.ref}, valid until {day(ethics.expires)}.{late}"


def _images(manifest: Manifest) -> str:
    kinds = (f"{_MODALITIES[code]} ({code})" if code in _MODALITIES else code for code in manifest.cohort.modalities)
    height, width = manifest.plan.input.size
    window = "whole range of values" if manifest.plan.input.window == "full" else "display window stored in the image"
    return (
        f"Images of {listed(kinds)} with a yes-or-no label, of patients whose consent allows it. A hospital takes part "
        f"only with at least {count(manifest.cohort.min_patients, 'such patient')}. Each image is scaled to {height} x "
        f"{width} pixels, using the {window}. Images and labels stay inside the hospital; consent is checked again "
        "before every round."
    )


def _training(manifest: Manifest) -> str:
    plan = manifest.plan
    if plan.network.name == "constant":
        return (
            "None: this study adds a constant in place of training, to measure the system. No image is opened. A "
            "hospital must allow this for itself."
        )
    start = (
        f"It starts from random numbers drawn from the seed {plan.initial.seed}, which every hospital draws for itself."
        if plan.initial.kind == "seed"
        else f"It starts from a model that was trained before, with the digest {plan.initial.model}."
    )
    altered = f" Images are varied by {listed(step.name for step in plan.transforms)}." if plan.transforms else ""
    return (
        f"One network of the type {plan.network.name} learns to answer yes or no. In a round each hospital goes "
        f"{count(plan.local_epochs, 'time')} through its own training images, {plan.batch:,} at a time.{altered} "
        f"{start}"
    )


def _leaves(manifest: Manifest, weights: int | None) -> str:
    network = manifest.plan.network
    known = network.args.get("parameters") if network.name == "constant" else weights
    size = f"{known:,} numbers" if isinstance(known, int) else "one number for each weight of the network"
    rounds = manifest.plan.stopping.max_rounds
    clip: Any = manifest.aggregation.clip_norm
    shown = (
        "Each time it is also asked for 256 numbers (a sketch) and one number (a check word) about its update."
        if manifest.aggregation.sketch
        else "Each time it is also asked for one number (a check word) about its update."
    )
    frozen = (
        f" Layers that are not trained ({listed(manifest.plan.frozen)}) are not in it." if manifest.plan.frozen else ""
    )
    kept = (
        " What the rounding takes away stays in the hospital and is sent with its next vector."
        if manifest.aggregation.error_feedback
        else ""
    )
    return (
        f"In each round one masked vector of {size}: how the hospital's training changed the model, shortened to a "
        f"length of at most {clip:g} and rounded to {manifest.aggregation.word_bits} bits a number.{frozen}{kept} With it, "
        f"under the same masks, {tail_length(manifest.plan.evaluation.bins):,} numbers that say how well the model did on the "
        f"hospital's test images. At most {count(rounds, 'round')} of this, and one more round that only evaluates. {shown} "
        "Beside these only signed notes of the protocol (keys, digests, times, reasons for a refusal). No image, no label, "
        "no patient's identifier and no number of patients leaves; "
        "the hospital's own test result leaves only where its policy shares metrics."
    )


def _portal_reads(manifest: Manifest) -> str:
    return (
        f"Only the sum over at least {count(smallest_list(manifest), 'hospital')}, never one hospital's vector: each "
        f"hospital hides its numbers under masks that cancel in the sum and nowhere else. {_neighbours(manifest)}The sum "
        f"says something about all who are in it, the more the fewer they are. {_sketch(manifest)}{_check_word(manifest)}"
    )


def _neighbours(manifest: Manifest) -> str:
    if not manifest.sparse:
        return ""
    return (
        f"With {len(manifest.participants)} hospitals (from {manifest.aggregation.sparse_from} on) a hospital does not mask "
        "with all others but with a part of them, drawn at random in each round in a way that nobody can choose. It sees "
        "the entries of those only. What is certain even if the portal lies about the rest: one sum a round, over more "
        "than half of the hospitals that do not conspire with it. "
    )


def _sketch(manifest: Manifest) -> str:
    if not manifest.aggregation.sketch:
        return ""
    return (
        "Before the masks are taken off, each hospital shows the portal and all partners a sketch: 256 numbers about its "
        "own update, once, and only for a list of hospitals that enough of them have signed. They tell how long the update "
        "is, to about 5 percent, and roughly how far it points the same way as the others; whoever has a guess at the whole "
        "update can test the guess. With them an update that is far too long, or empty, is left out of the sum. Sketches are "
        "never asked for in a study in which the hospitals share noise among them: they would show an update with one "
        "hospital's part of the noise only. "
    )


def _check_word(manifest: Manifest) -> str:
    words = (
        "After the sum is fixed each hospital shows one number, a check word, which says nothing about its update by itself. "
        "Together the check words show whether the published sum is the sum of what the hospitals sent."
    )
    if manifest.aggregation.check_words == "required":
        return f"{words} A sum for which one check word never comes is thrown away, and the round with it."
    return (
        f"{words} A sum may stand although a check word never came: it is then shown as unverified, and if the portal had "
        "published another sum than the true one, nobody would notice in that round."
    )


def _conspire(manifest: Manifest) -> str:
    c = withstood_colluders(manifest)
    if manifest.sparse:
        with_whom = (
            f"Even if the portal conspired with {count(c, 'other participant')}, one in five, it could not single out the "
            "vector of another hospital, but for a chance of less than one in a million million a round. It would have to "
            "choose them before the round is drawn. With more it might."
        )
    elif c <= 0:
        with_whom = (
            "The masks hold against the portal alone. If the portal conspired with even one other participant, a "
            "hospital's vector could become known."
        )
    else:
        with_whom = (
            f"Even if the portal conspired with {'one other participant' if c == 1 else f'{c} other participants'}, it "
            f"could not single out the vector of another hospital. With {'two' if c == 1 else c + 1} it might."
        )
    return (
        f"{with_whom} Hospitals that the portal invented would count among them; a hospital's policy can ask for "
        "partners whose keys it knows."
    )


def _privacy() -> str:
    return (
        "No noise is added (no differential privacy). No single hospital's numbers can be read, but the model itself "
        "may keep traces of single patients, and whoever compares the sums of many rounds may learn more than one sum "
        "says."
    )


def _partners(manifest: Manifest) -> str:
    equal = len({participant.weight for participant in manifest.participants}) == 1
    names = listed(
        f"{participant.organisation} ({participant.country}, silo {participant.silo}"
        + ("" if equal else f", weight {participant.weight}")
        + ")"
        for participant in manifest.participants
    )
    weights = (
        "Each counts the same in the mean."
        if equal
        else "The weights are fixed here and do not follow patient numbers."
    )
    drawn = manifest.aggregation.drawn
    n = len(manifest.participants) if drawn is None else drawn
    t = threshold(n)
    who = (
        ""
        if drawn is None
        else (
            f" In each training round {drawn} of them take part, drawn by hashing the model, the round's number and the "
            "hospital's name: nobody chooses, and everybody can check."
        )
    )
    lost = (
        f"Of all {n} at least {t} are needed in a round; one in ten may be missing or fall out and it still ends."
        if manifest.sparse
        else f"With all {n} in a round, {'one' if n - t == 1 else n - t} may fall out and the round still ends."
        if n > t
        else f"With all {n} in a round, none may fall out: the round is then begun again."
    )
    return f"{names}. {weights}{who} {lost}"


def _obligations(manifest: Manifest) -> str:
    if not manifest.purpose.accepts:
        return "The study accepts none."
    return _join(f"The study accepts: {TERMS[term].label}. {TERMS[term].meaning}" for term in manifest.purpose.accepts)


def _duration(manifest: Manifest) -> str:
    stopping = manifest.plan.stopping
    early = (
        f" Training ends sooner when the result has not risen by {stopping.min_delta:g} for "
        f"{count(stopping.patience, 'round')}."
        if stopping.patience is not None
        else ""
    )
    back = (
        f" When the result of a model lies more than {stopping.worse_by:g} below the best before it, going back to that one "
        "is proposed; the network's admin decides, and each hospital for itself."
        if stopping.worse_by is not None
        else ""
    )
    return (
        f"From {day(manifest.dates.start)} to {day(manifest.dates.end)}, at most {count(stopping.max_rounds, 'round')} "
        f"of at most {duration(manifest.limits.round_seconds)} each, and up to "
        f"{duration(manifest.limits.unmask_seconds)} more each for the unmasking and for the two steps that check the "
        f"sum.{early}{back} A hospital can withdraw at any "
        "time; the next round then runs without it."
    )


def _proof(manifest: Manifest) -> str:
    origin = manifest.log.vkey.split("+", 1)[0]
    witnesses = len(manifest.witnesses.vkeys)
    if witnesses == 0:
        watch = "No witness is named, so the hospitals rely on comparing the log themselves."
    else:
        false = manifest.witnesses.false
        watch = (
            f"{count(witnesses, 'witness is', 'witnesses are')} named for it, of whom {false or 'none'} may be false."
        )
    return f"Every step is recorded in the log {origin}, which cannot be changed unseen. {watch}"
