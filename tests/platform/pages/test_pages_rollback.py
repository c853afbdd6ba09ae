"""A model got worse, as pages say it: the grounds, who may decide, the branch, and what waits for the admin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import transaction

from evidence.models import Entry
from evidence.services import record
from federation.models import GlobalModel, Rollback, Round, RoundResult, SiloMetric
from organisations.models import Organisation, Silo
from portal.actors import SYSTEM, Subject

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
NAMES = ["site-1", "site-2", "site-3", "site-4"]
REPORT = {
    "digest": "sha256:" + "5" * 64,
    "bound": 10_000_000,
    "median": 4_000_000,
    "missing": [],
    "silos": {
        "site-1": {"norm": 4_000_000, "cosine": 310_000, "code": None},
        "site-2": {"norm": 25_000_000, "cosine": 420_000, "code": "NORM_OVER_BOUND"},
        "site-3": {"norm": 3_000_000, "cosine": -450_000, "code": None},
        "site-4": {"norm": 3_000_000, "cosine": 200_000, "code": None},
    },
}


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@pytest.fixture
def study(make_hospital: Any, make_study: Any) -> Any:
    """A running study: models 0 to 4; model 1 was the best, model 3 is worse; round 5 is open."""
    from governance.services import study_submit

    for name in NAMES:
        make_hospital(name)
    found, owner = make_study(NAMES)
    manifest = study_submit(actor=owner, study=found)
    type(found).objects.filter(pk=found.pk).update(state="running")
    found.refresh_from_db()
    for number, mean in enumerate((None, 0.7, 0.8, 0.78, 0.66, None)):
        item = Round.objects.create(
            study=found, manifest=manifest, manifest_digest=manifest.digest, key=f"{found.pk}.{number}.1", number=number,
            attempt=1, purpose="train" if number else "initial", stage="finished" if number < 5 else "update",
            model_digest=digest(number - 1) if number else None, announced=NAMES, roster=NAMES, first_list=NAMES,
            members=NAMES if number != 4 else NAMES[:3], started_at=START, deadline_at=START + timedelta(days=999),
            finished_at=START + timedelta(seconds=9) if number < 5 else None, newest=number == 5,
            sketches=REPORT if number == 3 else None, verified=None if number in (0, 5) else number != 2,
        )  # fmt: skip
        if number < 5:
            GlobalModel.objects.create(
                study=found,
                digest=digest(number),
                number=number,
                round=item,
                length=10,
                size=40,
                path="x",
                states=[{}] * 3,
            )
        if mean is not None:
            RoundResult.objects.create(
                round=item, model_number=number - 1, auc_mean=mean, auc_std=0.06, silos_with_auc=3, auc_pooled=mean,
                histograms=[[1, 1], [1, 1]],
            )  # fmt: skip
            SiloMetric.objects.create(
                round=item, silo=Silo.objects.get(name="site-1"), auc_micro=int(mean * 1e6) + 3000
            )
    return found


@pytest.fixture
def proposal(study: Any) -> Rollback:
    with transaction.atomic():
        entry = record(type="rollback.proposed", actor=SYSTEM, subject=Subject("study", study.pk))
    models = {each.number: each for each in GlobalModel.objects.filter(study=study)}
    return Rollback.objects.create(
        study=study, model=models[3], back_to=models[1], round=Round.objects.get(number=4), auc_micro=660_000,
        best_micro=800_000, error_micro=60_000, entry=entry,
    )  # fmt: skip


def read(client: Any, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, answer.status_code
    return " ".join(answer.content.decode().split())


def test_the_page_gives_the_grounds(study: Any, proposal: Rollback, sign_in: Any, make_user: Any):
    text = read(sign_in(study.owner), f"/studies/{study.pk}/roll-back/{proposal.pk}/")
    for words in (
        "Model 3 got worse: back to model 1?",
        "0.140 <small>± 0.060</small>",
        "if its AUC drops by 0.42;",
        "Only in the better one: Hospital site-4.",
        "Hospital site-2 was left out.",
        "Hospital site-3&#x27;s update pointed against the others&#x27; (cosine -0.45)",
        "The sum stands unverified",
        "4 of 40 rounds of training are done",
        "An admin of the network who does not own this study decides",
    ):
        assert words in text, words
    assert "0.803" in text and "0.663" in text, "what a hospital shares of its own"
    assert "Dismiss</a>" not in text


def test_the_proposal_stands_on_results_round_and_in_the_admins_list(
    study: Any, proposal: Rollback, sign_in: Any, make_user: Any
):
    client = sign_in(make_user("admin"))
    said = "Model 3 is worse than model 1 by 0.140 ± 0.060"
    assert said in read(client, f"/studies/{study.pk}/results/")
    assert said in read(client, f"/studies/{study.pk}/rounds/4.1/")
    assert said not in read(client, f"/studies/{study.pk}/rounds/3.1/")
    assert "model 3 is worse than model 1 by 0.140" in read(client, "/")
    assert "model 3 is worse" not in read(sign_in(study.owner), "/")
    (row,) = client.get(f"/studies/{study.pk}/report.json").json()["rollbacks"]
    assert (row["state"], row["model"], row["back_to"], row["error_micro"]) == ("open", 3, 1, 60_000)


def test_an_admin_goes_back_with_a_reason_and_the_pages_show_the_branch(
    study: Any, proposal: Rollback, sign_in: Any, make_user: Any
):
    client, address = sign_in(make_user("admin")), f"/studies/{study.pk}/roll-back/{proposal.pk}/"
    assert "silo resume" in read(client, address + "go-back/")
    empty = client.post(address + "go-back/", {"reason": " "})
    assert empty.status_code == 422 and Rollback.objects.get().state == "open"
    done = client.post(address + "go-back/", {"reason": "Three hospitals see it in their own figures."}, follow=True)
    assert "Three hospitals see it" in done.content.decode()
    assert Rollback.objects.get().state == "rolled_back"
    entry = Entry.objects.get(type="rollback.decided")
    assert entry.private == {"reason": "Three hospitals see it in their own figures."}
    assert "The next round starts from model 1" in read(client, f"/studies/{study.pk}/results/")
    Rollback.objects.update(first_round=Round.objects.get(number=5), newest=4)
    text = read(client, f"/studies/{study.pk}/results/")
    assert "Models 2 to 4 are left behind" in text and text.count("left behind</") >= 4
    assert 'models/1.safetensors" download>' in text and "Download model 1" in text
    assert "This round starts again from model 1" in read(client, f"/studies/{study.pk}/rounds/5.1/")
    assert client.get(f"/studies/{study.pk}/report.json").json()["model"] == digest(1)


@pytest.mark.parametrize("act", ["dismiss", "go-back"])
def test_nobody_but_an_admin_decides(study: Any, proposal: Rollback, sign_in: Any, make_user: Any, act: str):
    address = f"/studies/{study.pk}/roll-back/{proposal.pk}/{act}/"
    hospital = Silo.objects.get(name="site-1").organisation
    people = [study.owner, *(make_user(role, hospital) for role in ("steward", "it")), make_user("auditor")]
    for person in people:
        assert sign_in(person).post(address, {"reason": "Mine."}).status_code == 403
    asked = sign_in(make_user("admin"), second_factor=False).post(address, {"reason": "Without a second factor."})
    assert asked.status_code == 302 and "/account/2fa/" in asked.headers["Location"]
    assert Rollback.objects.get().state == "open"


def test_a_decided_proposal_asks_nobody_any_more(study: Any, proposal: Rollback, sign_in: Any, make_user: Any):
    admin = make_user("admin")
    client, address = sign_in(admin), f"/studies/{study.pk}/roll-back/{proposal.pk}/"
    assert client.post(address + "dismiss/", {"reason": "A new scanner."}).status_code == 302
    again = client.post(address + "go-back/", {"reason": "I was second."}, follow=True)
    assert "does not wait for a decision any more" in again.content.decode()
    assert Rollback.objects.get().state == "dismissed" and Rollback.objects.get().decided_by == admin
    assert "No study waits for a decision on going back" in read(client, "/")


def test_a_proposal_is_found_under_its_own_study_only(study: Any, proposal: Rollback, sign_in: Any, make_user: Any):
    client = sign_in(make_user("admin"))
    assert client.get(f"/studies/{study.pk}/roll-back/{proposal.pk + 1}/").status_code == 404
    assert client.get(f"/studies/st-other/roll-back/{proposal.pk}/").status_code == 404
    elsewhere = Organisation.objects.create(slug="hill", name="Hill Clinic", country="CH")
    stranger = sign_in(make_user("researcher", elsewhere, name="stranger"))
    assert stranger.get(f"/studies/{study.pk}/roll-back/{proposal.pk}/").status_code == 404


def test_stewards_read_what_their_node_asks_of_them(study: Any, proposal: Rollback, sign_in: Any, make_user: Any):
    steward = make_user("steward", Silo.objects.get(name="site-1").organisation)
    address = f"/studies/{study.pk}/roll-back/{proposal.pk}/"
    Rollback.objects.update(state="rolled_back", reason="Seen.", decided_by=study.owner, decided_at=START)
    assert f"silo resume FOLDER {study.pk} --reason TEXT" in read(sign_in(steward), address)
