"""Fill a portal with believable studies, rounds and decisions, to look at its pages. A tool for developers, not a test.

    CONSILIUM_HOME=/tmp/look BROKER_URL=memory:// python tests/browser/seed_pages.py     (prints the accounts as JSON)

What people and hospitals do goes through the services, with real signatures. Rounds are written as rows, because a
picture of a round in the middle of its training can't wait for one.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "look at the pages 2026"
TOTP = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
HOSPITALS = (
    ("site-1", "north", "University Hospital North", {"permission": "DUO:0000006", "modifiers": [{"code": "DUO:0000045"}]}),
    ("site-2", "east", "City Clinic East", {"permission": "DUO:0000042", "modifiers": [{"code": "DUO:0000012"}]}),
    ("site-3", "south", "Children's Hospital South", {"permission": "DUO:0000006", "limits": {"min_participants": 3}}),
    ("site-4", "west", "Harbour Hospital West",
     {"permission": "DUO:0000007", "diseases": ["DOID:162"], "share_metrics": False}),
)  # fmt: skip


def main() -> None:
    """Make everything in the portal that CONSILIUM_HOME names."""
    for folder in (ROOT / "platform", ROOT):
        sys.path.insert(0, str(folder))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings.demo")
    os.environ.setdefault("ALLOWED_HOSTS", "localhost,127.0.0.1,testserver")
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    call_command("init_portal", verbosity=0)
    accounts = seed()
    sys.stdout.write(json.dumps(accounts, indent=1) + "\n")


def seed() -> dict[str, Any]:
    """Hospitals, people, policies, studies in every state, rounds; returns the accounts."""
    from evidence.services import sequence
    from organisations.models import Organisation, Silo
    from organisations.services import account_create, organisation_register, role_grant, silo_invite
    from portal.actors import SYSTEM

    random.seed(7)
    people: dict[str, Any] = {}

    def person(name: str, full: str, role: str, organisation: Any = None) -> Any:
        totp = TOTP if role in ("admin", "steward", "auditor") else ""
        user = account_create(actor=SYSTEM, username=name, password=PASSWORD, totp_secret=totp)
        user.first_name, _, user.last_name = full.rpartition(" ")
        user.save()
        role_grant(actor=SYSTEM, user=user, role=role, organisation=organisation)
        people[name] = user
        return user

    admin = person("ada", "Dr. Ada Example", "admin")
    person("cora", "Cora Example", "auditor")
    hospitals = {}
    for number, (silo, slug, name, policy) in enumerate(HOSPITALS):
        organisation = organisation_register(
            actor=SYSTEM, slug=slug, name=name, country="DE", contact_email=f"research@{slug}.example.org"
        )
        person(f"steward-{slug}", f"Sam {slug.capitalize()}", "steward", organisation)
        hospitals[silo] = _hospital(silo, organisation, admin, policy)
        seen = timedelta(seconds=4 + number) if silo != "site-4" else timedelta(hours=3)
        Silo.objects.filter(name=silo).update(last_seen_at=_now() - seen)
    north = Organisation.objects.get(slug="north")
    person("rosa", "Dr. Rosa Example", "researcher", north)
    person("ivan", "Ivan Example", "it", north)
    lake = organisation_register(actor=SYSTEM, slug="lake", name="Lake District Hospital", country="AT")
    _enrol("site-5", lake)
    hill = organisation_register(actor=SYSTEM, slug="hill", name="Hill Clinic", country="CH", non_profit=False)
    silo_invite(actor=SYSTEM, organisation=hill, name="site-6")
    organisation_register(actor=SYSTEM, slug="river", name="Riverside Hospital", country="FR")
    _studies(people, hospitals)
    sequence()
    return {"password": PASSWORD, "totp": TOTP, "accounts": sorted(people)}


def _enrol(name: str, organisation: Any) -> Any:
    from organisations.services import silo_invite
    from portal.actors import SYSTEM

    hospital = _tools().Hospital(name)
    _, token = silo_invite(actor=SYSTEM, organisation=organisation, name=name)
    answer = hospital.node.send("POST", "/api/v1/silo/enrol", hospital.enrol_body(token))
    assert answer.status_code == 200, answer.content
    return hospital


def _hospital(name: str, organisation: Any, admin: Any, policy: dict[str, Any]) -> Any:
    from organisations.models import Silo
    from organisations.services import silo_confirm
    from portal.actors import SYSTEM
    from protocol.signing import fingerprint

    hospital = _enrol(name, organisation)
    silo = Silo.objects.get(name=name)
    silo_confirm(actor=SYSTEM, user=admin, silo=silo, fingerprint=fingerprint(hospital.key.public))
    signed = hospital.policy(**policy, organisation=organisation.name)
    answer = hospital.node.send("PUT", "/api/v1/silo/policy", signed.as_dict())
    assert answer.status_code == 200, answer.content
    return hospital


def _studies(people: dict[str, Any], hospitals: dict[str, Any]) -> None:
    from governance.services import review_decide, study_draft, study_edit, study_submit, study_withdraw
    from governance.study_templates import template

    rosa, ada = people["rosa"], people["ada"]
    owner, admin = _actor(rosa), _actor(ada)
    north = rosa.memberships.get().organisation

    def draft(title: str, summary: str, silos: list[str], **changes: Any) -> Any:
        today = _now().date()
        content = template("chest").draft() | {
            "title": title,
            "summary": summary,
            "participants": [{"silo": name, "weight": 2 if name == "site-3" else 1} for name in silos],
            "dates": {"start": str(today), "end": str(today + timedelta(days=219))},
        }
        return study_draft(actor=owner, owner=rosa, organisation=north, title=title, draft=content | changes)

    def agreed(study: Any, silos: list[str]) -> Any:
        manifest = study_submit(actor=owner, study=study)
        review_decide(
            actor=admin, reviewer=ada, study=study, decision="approve",
            reason="Clear purpose, no image leaves a hospital, and four hospitals are enough for the masks.",
        )  # fmt: skip
        for name in silos:
            signed = hospitals[name].statement(manifest)
            hospitals[name].node.send("PUT", f"/api/v1/studies/{study.pk}/approval", signed.as_dict())
        study.refresh_from_db()
        return manifest

    every = [name for name, *_ in HOSPITALS]
    waiting = draft(
        "Pneumonia on portable chest X-rays",
        "Find pneumonia on chest X-rays of adults and children. No commercial use.",
        every,
    )
    study_submit(actor=owner, study=waiting)
    changed = dict(waiting.draft, summary="Find pneumonia on portable chest X-rays of adults and children.")
    changed["plan"] = changed["plan"] | {
        "local_epochs": 3,
        "stopping": {"max_rounds": 30, "patience": 8, "min_delta": 0.002, "worse_by": 0.03},
    }
    study_edit(actor=owner, study=waiting, title=waiting.title, draft=changed)
    waiting.refresh_from_db()
    study_submit(actor=owner, study=waiting)

    running = draft(
        "Pleural effusion, first network study",
        "Say whether a chest X-ray shows fluid around the lung.",
        every,
        aggregation=template("chest").draft()["aggregation"] | {"sketch": True, "check_words": "optional"},
    )
    manifest = agreed(running, every[:3])
    _start(running, owner)
    _rounds(running, manifest, every, trained=12, open_round=True)
    _worse(running, round_number=12, back_to=6)

    done = draft("Cardiomegaly on posterior-anterior films", "Say whether the heart is enlarged.", every)
    manifest = agreed(done, every[:3])
    _start(done, owner)
    _rounds(done, manifest, every, trained=24, open_round=False)
    back = _worse(done, round_number=12, back_to=8)
    reason = "Three hospitals see it in their own figures, and a sum of these rounds stands unverified."
    back.state, back.decided_by, back.decided_at, back.reason, back.newest = "rolled_back", ada, _now(), reason, 13
    back.first_round = back.round.study.rounds.get(number=14)
    back.save()
    _set(done, state="completed")

    asked = draft("Catheter position after surgery", "Say whether a central line ends where it should.", every[:3])
    agreed(asked, every[1:2])

    paused = draft("Rib fractures in children", "Say whether a chest X-ray of a child shows a rib fracture.", every)
    manifest = agreed(paused, every[:3])
    _start(paused, owner)
    _rounds(paused, manifest, every, trained=3, open_round=False)
    sentence = (
        "Three rounds in a row failed. Fewer than 3 silos could send an update. City Clinic East (site-2) refused: its "
        "cohort has fewer patients than the study asks for."
    )
    _set(paused, state="paused", paused_reason={"code": "ROUNDS_FAILED", "sentence": sentence})

    refused = draft("Emphysema, commercial screening", "Find emphysema for a screening product.", every)
    study_submit(actor=owner, study=refused)
    review_decide(
        actor=admin,
        reviewer=ada,
        study=refused,
        decision="reject",
        reason="The purpose does not say who may use the result. Name the partner and the licence.",
    )
    draft("Nodules at 128 pixels", "", every)
    gone = draft("Old trial", "A trial run.", every)
    study_withdraw(actor=owner, study=gone, reason="Replaced by a larger study.")


def _start(study: Any, owner: Any) -> None:
    from governance.services import study_start

    study.refresh_from_db()
    if study.state == "approved":
        study_start(actor=owner, study=study)


def _set(study: Any, **fields: Any) -> None:
    type(study).objects.filter(pk=study.pk).update(**fields)


def _rounds(study: Any, manifest: Any, silos: list[str], *, trained: int, open_round: bool) -> None:
    from django.db import transaction

    from evidence.services import record
    from federation.models import GlobalModel, Round, RoundResult, SiloMetric
    from organisations.models import Silo
    from portal.actors import SYSTEM, Subject

    Round.objects.filter(study=study).delete()
    rows = {silo.name: silo for silo in Silo.objects.filter(name__in=silos)}
    asked = silos[:3]
    start = _now() - timedelta(seconds=14 * (trained + 2) + 8)
    before = ""
    for number in range(trained + 1 + int(open_round)):
        still = open_round and number == trained + 1
        purpose = "initial" if number == 0 else "train"
        began = start + timedelta(seconds=14 * number) if not still else _now() - timedelta(seconds=7.2)
        made = None if still else _digest(study, number)
        item = Round.objects.create(
            study=study, manifest=manifest, key=f"{study.pk}.{number}.1", number=number, attempt=1, purpose=purpose,
            stage="update" if still else "finished", newest=number == trained + int(open_round),
            model_digest=before or None, model_length=31_954 if number else 0, announced=asked,
            roster=asked if number else None, ready_set=asked if number else None,
            members=asked if number and not still else None, total_weight=4 if number and not still else None,
            started_at=began, stage_at=began, deadline_at=began + timedelta(minutes=10),
            finished_at=None if still else began + timedelta(seconds=11.3 if number else 2.1),
            next_model_digest=made, sum_digest=made if number else None, bytes_up=387_000 if number and not still else 0,
        )  # fmt: skip
        _tracks(item, rows, asked, still=still)
        if number and not still:
            _checks(item, rows, asked, open_round, trained)
        if made:
            GlobalModel.objects.create(
                study=study,
                digest=made,
                number=number,
                round=item,
                length=31_954,
                size=128_140,
                path=f"{made[7:]}.state",
                states=[{}, {}, {}],
            )
            if number:
                shares = _scores(number)
                RoundResult.objects.create(
                    round=item, model_number=number - 1, loss=0.69 * math.exp(-number / 30),
                    auc_mean=sum(shares) / 3, auc_std=_std(shares), auc_pooled=sum(shares) / 3 + 0.012,
                    silos_with_auc=3, histograms=_bins(),
                )  # fmt: skip
                for name, value in zip(asked[:2], shares, strict=False):
                    SiloMetric.objects.create(round=item, silo=rows[name], auc_micro=int(value * 1e6))
            with transaction.atomic():
                record(
                    type="round.finished",
                    actor=SYSTEM,
                    subject=Subject("round", item.key, manifest.digest),
                    refs={"model": made},
                    data={"members": asked},
                )
        before = made or before
    if open_round:
        _failed(study, manifest, rows, asked)


def _worse(study: Any, *, round_number: int, back_to: int) -> Any:
    """A proposal to go back: the model that came into this round scored worse."""
    from django.db import transaction

    from evidence.services import record
    from federation.models import GlobalModel, Rollback, RoundResult
    from portal.actors import SYSTEM, Subject

    models = {each.number: each for each in GlobalModel.objects.filter(study=study)}
    item = study.rounds.get(number=round_number)
    before = RoundResult.objects.get(round__study=study, model_number=back_to)
    for metric in item.metrics.all():
        metric.auc_micro -= 120_000
        metric.save()
    RoundResult.objects.filter(round=item).update(auc_mean=before.auc_mean - 0.113, auc_pooled=before.auc_pooled - 0.1)
    scores = {"auc_micro": int((before.auc_mean - 0.113) * 1e6), "best_micro": int(before.auc_mean * 1e6)}
    with transaction.atomic():
        entry = record(
            type="rollback.proposed", actor=SYSTEM, subject=Subject("study", study.pk), data=scores,
            refs={"model": models[round_number - 1].digest, "back_to": models[back_to].digest},
        )  # fmt: skip
    return Rollback.objects.create(
        study=study, model=models[round_number - 1], back_to=models[back_to], round=item, entry=entry, error_micro=48_000,
        **scores,
    )  # fmt: skip


def _checks(item: Any, rows: dict[str, Any], asked: list[str], sketched: bool, trained: int) -> None:
    """What the checks of a finished round found: in the last one a hospital is out of bounds, in the one before it a
    check word is missing."""
    import numpy as np

    from federation.services.reasons import CHECK_MISSING, SKETCH_REASONS
    from protocol.canonical import b64

    out = asked[1] if sketched and item.number == trained else None
    item.verified = not (sketched and item.number == trained - 1)
    if not item.verified:
        item.faults = [{"silo": asked[2], "code": "CHECK_MISSING", "sentence": CHECK_MISSING}]
    if sketched:
        item.first_list, item.members = asked, [name for name in asked if name != out]
        draw = np.random.default_rng(item.number)
        common = draw.normal(0, 1000, 256)
        silos = {}
        for place, name in enumerate(asked):
            own = common * (0.9 - 0.3 * place) + draw.normal(0, 1000, 256)
            content = {"sums": b64(own.astype("<i8").tobytes())}
            _message(item, rows[name], "sketch", item.started_at + timedelta(seconds=9.6), content)
            norm = 9_000_000 + 800_000 * place if name != out else 61_000_000
            code = "NORM_OVER_BOUND" if name == out else None
            silos[name] = {"norm": norm, "cosine": 410_000 - 130_000 * place, "code": code}
        if out is not None:
            item.messages.filter(silo=rows[out], kind__in=("unmask", "nonce", "check", "state")).delete()
            item.faults = [{"silo": out, "code": "NORM_OVER_BOUND", "sentence": SKETCH_REASONS["NORM_OVER_BOUND"]}]
        item.sketches = {
            "digest": _digest(item.study, 1000), "bound": 20_000_000, "median": 9_800_000, "missing": [], "silos": silos,
        }  # fmt: skip
    item.save()


def _failed(study: Any, manifest: Any, rows: dict[str, Any], asked: list[str]) -> None:
    """An attempt that failed: one silo refused, one was lost."""
    from federation.models import Round

    began = _now() - timedelta(minutes=3)
    item = Round.objects.create(
        study=study, manifest=manifest, key=f"{study.pk}.5.2", number=5, attempt=2, purpose="train", stage="failed",
        newest=False, model_digest=_digest(study, 4), model_length=31_954, announced=asked, roster=asked,
        started_at=began, stage_at=began, deadline_at=began + timedelta(minutes=10), finished_at=began + timedelta(seconds=9),
        failure={"code": "TOO_FEW", "sentence": "Fewer than 3 silos could send an update. City Clinic East (site-2) did not "
                 "answer in time. Children's Hospital South (site-3) refused: its consent registry was last read 26 hours ago."},
        faults=[{"silo": asked[1], "code": "LOST", "sentence": "It stopped answering 4.1 s after the key exchange. It sent no "
                 "whole update, so nothing of it can be in the sum."}],
    )  # fmt: skip
    _tracks(item, rows, asked[:2], still=True, lost=asked[1])
    _message(
        item,
        rows[asked[2]],
        "refusal",
        began + timedelta(seconds=0.8),
        {
            "reasons": [
                {
                    "code": "CONSENT_STALE",
                    "sentence": "its consent registry was last read 26 hours ago; the limit is 24.",
                }
            ]
        },
    )


def _tracks(item: Any, rows: dict[str, Any], asked: list[str], *, still: bool, lost: str = "") -> None:
    from federation.models import ChunkReceipt, Seat, SiloStage

    began = item.started_at
    for place, name in enumerate(asked):
        silo = rows[name]
        at = lambda seconds, began=began: began + timedelta(seconds=seconds)  # noqa: E731
        Seat.objects.create(round=item, silo=silo, seen_at=at(7.0 if lost != name else 4.4), working_on="training")
        SiloStage.objects.create(round=item, silo=silo, stage="gate", entered_at=at(0.05))
        if item.purpose == "initial":
            _message(item, silo, "state", at(1.4 + place / 5))
            continue
        _message(item, silo, "keys", at(0.4 + place / 10))
        SiloStage.objects.create(round=item, silo=silo, stage="training", entered_at=at(0.5 + place / 10))
        _message(item, silo, "bundles", at(0.7 + place / 10))
        _message(item, silo, "ready", at(1.1 + place / 10))
        if lost == name or (still and place != 0):
            continue
        ends = 5.2 + place * 1.4
        SiloStage.objects.create(round=item, silo=silo, stage="upload", entered_at=at(ends))
        for index in range(2):
            ChunkReceipt.objects.create(
                round=item,
                silo=silo,
                index=index,
                digest="sha256:" + "0" * 64,
                size=(127_816, 4_136)[index],
                received_at=at(ends + 0.2 + index / 10),
            )
        _message(item, silo, "update", at(ends + 0.5))
        if not still:
            _message(item, silo, "list", at(9.4))
            _message(item, silo, "unmask", at(10.1 + place / 10))
            _message(item, silo, "nonce", at(10.5))
            _message(item, silo, "check", at(10.8 + place / 10))
            _message(item, silo, "state", at(11.1))


def _message(item: Any, silo: Any, kind: str, at: datetime, content: dict[str, Any] | None = None) -> None:
    import base64

    from federation.models import RoundMessage

    payload = base64.b64encode(json.dumps(content or {}).encode()).decode()
    RoundMessage.objects.create(
        round=item, silo=silo, kind=kind, envelope={"payload": payload}, digest="sha256:" + "0" * 64, received_at=at
    )


def _scores(number: int) -> list[float]:
    return [
        high - (high - 0.5) * math.exp(-number / pace) + random.uniform(-0.008, 0.008)
        for high, pace in ((0.80, 7), (0.86, 5), (0.95, 4))
    ]


def _std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _bins() -> list[list[int]]:
    """Two bell curves that overlap, in 32 bins a class."""
    return [[round(1e6 * math.exp(-(((k - middle) / 7) ** 2))) for k in range(32)] for middle in (10, 21)]


def _digest(study: Any, number: int) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(f"{study.pk}/{number}".encode()).hexdigest()


def _actor(user: Any) -> Any:
    from portal.actors import Actor

    held = user.memberships.select_related("organisation").get()
    return Actor(str(user.pk), held.role, held.organisation.slug if held.organisation else "network", "password+totp")


def _now() -> datetime:
    from django.utils import timezone

    return timezone.now()


def _tools() -> Any:
    """The hospital of the portal's tests: keys, signatures, requests."""
    name = "consilium_test_tools"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "platform" / "conftest.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


if __name__ == "__main__":
    main()
