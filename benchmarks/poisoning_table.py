"""docs/poisoning.md from the JSON lines of `benchmarks.poisoning` and `benchmarks.update_norms`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.attacks import ATTACKS, GROSS, QUIET
from benchmarks.poisoned_runs import REFUSED
from protocol.secure_aggregation.sketch import ABOVE, BELOW, SLACK

Lines = Sequence[dict[str, Any]]
WORDS = {attack.name: attack.words for attack in ATTACKS}
LAST = 4
"""The AUC and the backdoor's success of a run are means over the models of its last rounds."""


def text(lines: Lines) -> str:
    """The page. Lines of several runs may follow each other; the first run's attacker gets most of the page."""
    main, *rest = _runs(lines)
    settings = main[0]
    attacker, bits = settings["attacker"], settings["word_bits"]
    others = [its for its in rest if its[0]["word_bits"] == bits]
    gross, quiet = ([attack.name for attack in kind] for kind in (GROSS, QUIET))
    parts = [
        _HEAD.format(
            **settings, last=LAST, attacked=settings["rounds"] - settings["start"] + 1,
            sizes=", ".join(f"{silo} {count}" for silo, count in settings["images"].items()),
        ),
        _RULE.format(slack=float(SLACK), above=ABOVE, below=float(BELOW), clip=settings["clip"]),
        _damage(main, gross, attacker),
        _REPLAY, _replay(main),
        _NORMS, _norms(lines), _NORMS_SAY,
        _QUIET, _damage(main, quiet, attacker),
        _DIRECTIONS, _directions(main, attacker),
        _GAINS.format(**settings), _gains(main, attacker),
    ]  # fmt: skip
    for its in others:
        other = its[0]["attacker"]
        parts += [_OTHER.format(**its[0]), _damage(its, [*gross, *quiet], other), _directions(its, other)]
    parts += [words_section(its) for its in rest if its[0]["word_bits"] != bits]
    parts.append(_conclusion({its[0]["attacker"]: its for its in (main, *others)}))
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def words_section(lines: Lines) -> str:
    """What gross attacks do in a run whose words have another size than the page's."""
    attacker = lines[0]["attacker"]
    attacks = _damage(lines, [attack.name for attack in GROSS], attacker)
    return "\n".join(part.strip("\n") + "\n" for part in (_WORDS.format(**lines[0]), attacks, _REPLAY, _replay(lines)))


def _runs(lines: Lines) -> list[list[dict[str, Any]]]:
    """The lines by attacker and word size; the first of each are its settings."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    of = ("", 0)
    for line in lines:
        if line["kind"] == "settings":
            of = line["attacker"], line["word_bits"]
        runs.setdefault(of, []).append(line)
    return list(runs.values())


def _damage(lines: Lines, names: Sequence[str], attacker: str) -> str:
    rows = []
    for name in ("none", *names):
        checked = [line for line in lines if line["kind"] == "round" and line["attack"] == name and line["check"]]
        unchecked = [line for line in lines if line["kind"] == "round" and line["attack"] == name and not line["check"]]
        if not unchecked:
            continue
        honest = {silo for line in checked for silo in line["excluded"] if silo != attacker}
        rows.append(
            [
                "no attacker" if name == "none" else WORDS[name],
                _rounds_out(lines, checked, attacker),
                ", ".join(sorted(honest)) or "none",
                _difference(lines, name, check=True),
                _difference(lines, name, check=False),
                _percent(_late(lines, checked, "success")),
                _percent(_late(lines, unchecked, "success")),
                _lost(unchecked),
            ]
        )
    head = ["what it sends", "left out in rounds", "honest silos left out", "AUC with the check", "AUC without",
            "patch works, with", "without", "sums thrown away, without"]  # fmt: skip
    return _table(head, rows)


def _rounds_out(lines: Lines, checked: Lines, attacker: str) -> str:
    """In which rounds of all seeds, and why."""
    seeds = _seeds(lines)
    attacked = {line["round"] for line in checked if attacker in line["excluded"]}
    if not attacked:
        return "never"
    reasons = {line["excluded"][attacker] for line in checked if attacker in line["excluded"]}
    always = all(
        sum(line["round"] == number and attacker in line["excluded"] for line in checked) == len(seeds)
        for number in attacked
    )
    span = f"{min(attacked)} to {max(attacked)}"
    whole = len(attacked) == max(attacked) - min(attacked) + 1 and always
    reason = ", ".join("refused by its own silo" if code == REFUSED else f"`{code}`" for code in sorted(reasons))
    return f"{'' if whole else 'some of '}{span}: {reason}"


def _lost(chosen: Lines) -> str:
    lost = sum(line["lost"] is not None for line in chosen)
    return f"{lost} of {len(chosen)} rounds" if lost else "none"


def _difference(lines: Lines, name: str, *, check: bool) -> str:
    """The mean AUC, and its difference to the same seeds' runs without an attacker, with its standard error."""
    means = _by_seed(lines, name, check)
    plain = _by_seed(lines, "none", check)
    if name == "none":
        return f"{np.mean(list(means.values())):.3f}"
    return f"{np.mean(list(means.values())):.3f} ({_with_error([means[seed] - plain[seed] for seed in means])})"


def _by_seed(lines: Lines, name: str, check: bool) -> dict[int, float]:
    chosen = [line for line in lines if line["kind"] == "round" and line["attack"] == name and line["check"] == check]
    late = max(line["round"] for line in chosen) - LAST
    return {
        seed: float(np.mean([line["mean"] for line in chosen if line["seed"] == seed and line["round"] > late]))
        for seed in sorted({line["seed"] for line in chosen})
    }


def _late(lines: Lines, chosen: Lines, key: str) -> list[float]:
    late = max(line["round"] for line in chosen) - LAST
    return [line[key] for line in chosen if line["round"] > late]


def _replay(lines: Lines) -> str:
    found = [line["found"] for line in lines if line["kind"] == "replay"]
    silos = sorted(found[0]["norms"])
    rows = []
    for name in found[0]["attacks"]:
        counts = [entry["attacks"][name] for entry in found]
        cells = [
            f"{sum(count[silo]['caught'] for count in counts)} of {sum(count[silo]['tries'] for count in counts)}"
            for silo in silos
        ]
        honest = sum(count[silo]["honest_excluded"] for count in counts for silo in silos)
        rows.append([WORDS[name], *cells, honest])
    judged = sum(entry["honest"]["sketches"] for entry in found)
    out = sum(entry["honest"]["excluded"] for entry in found)
    rows.append(["nobody attacks", *([""] * len(silos)), f"{out} of {judged}"])
    return _table(["attack, caught if it came from", *silos, "honest left out"], rows)


def _norms(lines: Lines) -> str:
    rows = []
    for line in lines:
        if line["kind"] == "norms":
            every = [value for values in line["ratios"].values() for value in values]
            cells = [f"{min(values):.2f} to {max(values):.2f}" for _, values in sorted(line["norms"].items())]
            rows.append([line["plan"], *cells, f"{min(every):.2f} to {max(every):.2f}"])
    silos = sorted(next(line["images"] for line in lines if line["kind"] == "settings"))
    return _table(["plan", *silos, "sketch over the median"], rows)


def _directions(lines: Lines, attacker: str) -> str:
    rows = []
    chosen = [line for line in lines if line["kind"] == "directions"]
    for name in dict.fromkeys(line["attack"] for line in chosen):
        for count in sorted({line["rounds"] for line in chosen}):
            found = [line["silos"] for line in chosen if line["attack"] == name and line["rounds"] == count]
            silos = sorted(found[0])

            def mean(silo: str, key: str, found: Lines = found) -> float:
                return float(np.mean([entry[silo][key] for entry in found]))

            lowest = [_lowest(entry, "cosine") for entry in found]
            rows.append(
                [
                    "no attacker" if name == "none" else WORDS[name],
                    count,
                    *[f"{mean(silo, 'cosine'):+.2f} ({mean(silo, 'z'):+.1f})" for silo in silos],
                    f"{sum(silo == attacker for silo in lowest)} of {len(lowest)}",
                ]
            )
    head = ["attack", "rounds", *(f"**{silo}**" if silo == attacker else silo for silo in silos), "attacker is lowest"]
    return _table(head, rows)


def _gains(lines: Lines, attacker: str) -> str:
    rows = []
    chosen = [line for line in lines if line["kind"] == "gains"]
    for name in dict.fromkeys(line["attack"] for line in chosen):
        found = [line["silos"] for line in chosen if line["attack"] == name]
        silos = sorted(set.intersection(*(set(entry) for entry in found)))
        cells = []
        for silo in silos:
            error = float(np.sqrt(np.sum([entry[silo]["error"] ** 2 for entry in found]))) / len(found)
            cells.append(f"{np.mean([entry[silo]['difference'] for entry in found]):+.4f} ± {error:.4f}")
        lowest = [_lowest(entry, "difference") for entry in found]
        out = f"{lowest.count(attacker)} of {len(lowest)}"
        rows.append(["no attacker" if name == "none" else WORDS[name], *cells, out])
    names = [f"**{silo}**" if silo == attacker else silo for silo in silos]
    return _table(["attack", *names, "attacker is lowest"], rows)


def _seeds(lines: Lines) -> set[int]:
    return {line["seed"] for line in lines if line["kind"] == "round"}


def _percent(values: Iterable[float]) -> str:
    return f"{100 * float(np.mean(list(values))):.0f} %"


def _with_error(values: Sequence[float], form: Callable[[float], str] = "{:+.3f}".format) -> str:
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return form(float(np.mean(values))) + error


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _conclusion(runs: dict[str, list[dict[str, Any]]]) -> str:
    main = next(iter(runs))
    lowest, honest = [], []
    for attacker, lines in runs.items():
        chosen = [line for line in lines if line["kind"] == "directions"]
        last = [line for line in chosen if line["rounds"] == max(other["rounds"] for other in chosen)]
        attacked = [_lowest(line["silos"], "cosine") for line in last if line["attack"] != "none"]
        lowest.append(f"{attacked.count(attacker)} of {len(attacked)} runs with {attacker} as the attacker")
        if attacker == main:
            honest = [_lowest(line["silos"], "cosine") for line in last if line["attack"] == "none"]
    gains = [line for line in runs[main] if line["kind"] == "gains"]
    flips = [line["silos"] for line in gains if line["attack"] in ("sign_flip", "label_flip")]
    plain = [gain["difference"] / gain["error"] for line in gains if line["attack"] == "none"
             for gain in line["silos"].values()]  # fmt: skip
    return _CONCLUSION.format(
        lowest=", ".join(lowest),
        without=", ".join(f"{silo} in {honest.count(silo)} of {len(honest)}" for silo in sorted(set(honest))),
        found=sum(_lowest(silos, "difference") == main for silos in flips),
        flips=len(flips),
        farthest=abs(min(plain)),
    )


def _lowest(silos: dict[str, Any], key: str) -> str:
    return min(silos, key=lambda silo: silos[silo][key])


_HEAD = """
# Poisoned updates: what the sketch check stops, and what it does not

Written by `python -m benchmarks.poisoning --table` from a run of `python -m benchmarks.poisoning` and
`python -m benchmarks.update_norms` on real chest X-rays; no figure in a table is typed.

Six silos train the demo's plan together: four hospitals, two of them halved by patient (training images: {sizes}).

{attacker} attacks from round {start} to the last, {rounds}: {attacked} rounds. Seeds: {seeds}. Words of {word_bits} bits, norm
bound (`clip_norm`) {clip:g}. AUC: the mean over site_1, site_2 and site_3 (site_4 has one class), and over the models of the
last {last} rounds; in brackets the difference to the same seeds without an attacker, with its standard error over seeds.
"""

_RULE = """
## The rule

`protocol/secure_aggregation/sketch.py`. Each silo's 256 sums give its update's norm to about 5 %. A silo is left out of the sum,
in the round in which it comes, where that norm is

- above {slack:g} times the norm bound (`NORM_OVER_BOUND`): it did not clip. This is the part that does the work: with the
  bound near an honest update's own length, whoever sends three times as much is far over it;
- above {above:g} times the median of all (`NORM_ABOVE_OTHERS`): a net for studies with a loose bound;
- below {below:g} times the median (`NORM_BELOW_OTHERS`): an empty update.

It has no memory: a silo that joins late or was away comes to the same set from the round's sketches alone, in exact fractions.

## Gross attacks
"""

_REPLAY = """
Each silo of each round of the honest runs once as the attacker, the sketch drawn anew several times (nothing is trained again):
"""

_NORMS = """
## Why these factors

Honest norms, a round each, without a clip; the last column is what a rule by the median would see:
"""

_NORMS_SAY = """
By the median alone, three times a small hospital's update can't be told from a large hospital's own, and how far honest
hospitals lie apart depends on the plan: with SGD the hospital with one class (site_4) soon sends very little. So the norm bound
excludes, and the two factors of the median lie outside all that was seen of an honest silo. **Choose `clip_norm` near the
upper end of honest norms** (a dry run shows them, or the norms of earlier rounds): a bound of ten times that is a bound that
lets ten times through, but for the factor of the median.
"""

_QUIET = """
## Quiet attacks

They clip, round and sign as they should, so nobody is left out, and the runs with and without the check are the same. What the
norm bound is worth shows against the table above: the same flip, or the same backdoor, with five times the length.
"""

_DIRECTIONS = """
## Directions, summed over rounds

Cosine of a silo's sketches with the sum of the others', the attacked rounds so far laid end to end, and in brackets its z-score
against the other silos' cosines; means over seeds. The last column: in how many seeds the attacker has the lowest cosine of all.
"""

_GAINS = """
## Gain with and without a silo

Other runs, of {gain_rounds} rounds, in which {silos_a_round} silos drawn at random take part in each round: the mean gain in AUC
of a round with the silo, less that of a round without, with its standard error, from round {start} on; means over seeds.
"""

_OTHER = """
## The same with {attacker} as the attacker

Seeds: {seeds}.
"""

_WORDS = """
## The same with words of {word_bits} bits

Gross attacks only, {attacker} from round {start} to {rounds}, norm bound {clip:g}, one scale with the most binary places, up to
20, whose range can be proved. Seeds: {seeds}.
"""

_CONCLUSION = """
## What can't be told apart

- **Who pulls the wrong way, by direction.** Quiet attacks in which the attacker has the lowest cosine of all, over all attacked
  rounds: {lowest}.
  In the others an honest silo has it; without an attacker the hospital with one class ({without}). A silo that flips
  signs or labels pulls most against whoever resembles it most. Where that is the other half of its own hospital, the honest
  half looks as bad or worse; only where nobody resembles it do flipped signs, after some rounds, leave it lowest. More rounds
  make the cosines surer, but a low cosine says that two hospitals disagree, not which of them is wrong.
- **Who does harm, by the gain**: better, but only where participation was drawn at random, after many rounds, and not for
  certain. Among runs with flipped signs or labels the attacker has the lowest gain in {found} of {flips}, and an honest silo
  in the others. Without any attacker an honest silo's gain still lies up to {farthest:.1f} of its standard errors below zero: a
  hospital that is merely different can lower the mean as well.
- **A backdoor** has the cosine and the gain of an honest silo, and the model keeps its AUC; only somebody who tries the right
  patch can see it. **Noise and an old update** have an honest cosine too; they cost no more than the silo's absence.
- **Whether leaving out was worth it.** The model then goes without the silo's images (the column "AUC with the check"). Where no
  other hospital is like it, that can cost more than a threefold honest update would have done.

So the check ends gross attacks at once and limits quiet ones to what one honest update's length can do; a person who sees a low
cosine or a loss over many rounds may pause a silo and ask. No machine does.
"""
