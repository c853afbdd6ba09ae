"""Where a draft's model starts: a researcher uploads a file for the own draft, and the plan names exactly those bytes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from evidence.models import Entry
from federation.models import UploadedModel
from federation.storage import model_path
from governance.services import study_submit
from portal.problems import Refused
from protocol.initial_model import initial_state
from protocol.manifest import parse_manifest
from protocol.model_state import ModelState, TensorSpec

SITES = ["site-1", "site-2", "site-3"]


def _model(seed: int = 5, size: int = 12) -> ModelState:
    return initial_state((TensorSpec("conv.weight", (size, 3)), TensorSpec("conv.bias", (size,))), seed)


def _upload(client: Client, study: Any, data: bytes, name: str = "m.safetensors") -> Any:
    return client.post(f"/studies/{study.pk}/first-model/", {"file": SimpleUploadedFile(name, data)})


def _initial(study: Any) -> dict[str, Any]:
    study.refresh_from_db()
    return study.draft["plan"]["initial"]


@pytest.fixture
def draft(make_hospital: Any, make_study: Any, sign_in: Any) -> Any:
    """(study in draft that asks three hospitals, its owner's actor, its owner's client)."""
    for name in SITES:
        make_hospital(name)
    study, actor = make_study(SITES)
    return study, actor, sign_in(study.owner)


def test_an_uploaded_model_becomes_the_start_of_the_plan_and_of_the_manifest(draft: Any):
    study, actor, client = draft
    state = _model()
    before = client.get(f"/studies/{study.pk}/first-model/").content.decode()
    assert "starts from random numbers" in before
    answer = _upload(client, study, state.to_bytes(), "m.consilium")
    assert (answer.status_code, answer.headers["Location"]) == (302, f"/studies/{study.pk}/first-model/")
    assert _initial(study) == {"kind": "pretrained", "model": state.digest}
    assert model_path(state.digest).read_bytes() == state.to_bytes()
    page = client.get(f"/studies/{study.pk}/first-model/").content.decode()
    assert state.digest in page and "<dd>48</dd>" in page
    manifest = study_submit(actor=actor, study=study)
    assert parse_manifest(manifest.data).plan.initial.model == state.digest
    assert Entry.objects.filter(type="study.drafted", subject_id=study.pk).count() == 2


def test_safetensors_are_taken_and_kept_as_a_raw_state(draft: Any):
    safetensors = pytest.importorskip("safetensors.numpy")
    study, _, client = draft
    state = _model()
    data = safetensors.save({name: state.tensor(name).copy() for name in ("conv.weight", "conv.bias")})
    assert _upload(client, study, data).status_code == 302
    stored = ModelState.load(model_path(_initial(study)["model"]))
    assert (stored.tensor("conv.weight") == state.tensor("conv.weight")).all()


def test_a_file_that_is_no_model_is_refused_in_words(draft: Any, settings: Any):
    study, _, client = draft
    answer = _upload(client, study, b"\x80\x04\x95 a pickle of some kind, long enough", "model.pt")
    assert answer.status_code == 422 and "neither safetensors nor a raw state" in answer.content.decode()
    assert client.post(f"/studies/{study.pk}/first-model/").status_code == 422
    assert _initial(study)["kind"] == "seed" and not UploadedModel.objects.exists()
    assert list(settings.MODEL_FOLDER.iterdir()) == []


def test_a_large_file_comes_in_pieces(draft: Any, settings: Any, monkeypatch: Any):
    from federation.services import incoming

    monkeypatch.setattr(incoming, "PIECE", 100)
    study, _, client = draft
    state = _model(size=30)
    data = state.to_bytes()
    address = f"/studies/{study.pk}/first-model/"
    count = -(-len(data) // 100)
    assert count > 3
    for index in (0, 1, *range(count)):  # a cut upload is begun anew
        piece = data[index * 100 : (index + 1) * 100]
        sent = client.post(f"{address}{index}/", piece, content_type="application/octet-stream")
        assert sent.status_code == 200, sent.content
    assert client.post(address, {"pieces": count}).status_code == 302
    assert _initial(study) == {"kind": "pretrained", "model": state.digest}
    assert [path.name for path in settings.MODEL_FOLDER.iterdir()] == [model_path(state.digest).name]


def test_pieces_are_limited_and_a_missing_one_is_noticed(draft: Any, settings: Any, monkeypatch: Any):
    from federation.services import incoming

    monkeypatch.setattr(incoming, "PIECE", 100)
    settings.FEDERATION_MODEL_BYTES = 250
    study, _, client = draft
    address = f"/studies/{study.pk}/first-model/"

    def send(index: int, size: int) -> int:
        return client.post(f"{address}{index}/", bytes(size), content_type="application/octet-stream").status_code

    assert [send(0, 100), send(1, 100), send(2, 50)] == [200, 200, 200]
    assert [send(2, 51), send(3, 1), send(0, 101), send(0, 0), send(999_999_999, 1)] == [413] * 5
    (Path(settings.MODEL_FOLDER) / f".incoming-{study.pk}" / "1").unlink()
    answer = client.post(address, {"pieces": 3})
    assert answer.status_code == 422 and "Not all of the file arrived" in answer.content.decode()
    assert list(settings.MODEL_FOLDER.iterdir()) == [], "an upload that failed is forgotten"
    for pieces in (0, -1, 10**12):
        assert client.post(address, {"pieces": pieces}).status_code == 422


def test_an_upload_that_nobody_finished_is_forgotten_after_a_day(draft: Any, settings: Any):
    study, _, client = draft
    old = Path(settings.MODEL_FOLDER) / ".incoming-st-old"
    old.mkdir()
    (old / "0").write_bytes(b"x")
    os.utime(old, (time.time() - 90_000,) * 2)
    client.post(f"/studies/{study.pk}/first-model/0/", b"x", content_type="application/octet-stream")
    assert [path.name for path in settings.MODEL_FOLDER.iterdir()] == [f".incoming-{study.pk}"]


def test_a_piece_needs_the_forms_token(draft: Any, sign_in: Any):
    study, _, client = draft
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = client.cookies
    address = f"/studies/{study.pk}/first-model/"
    page = strict.get(address).content.decode()
    token = page.partition('name="csrfmiddlewaretoken" value="')[2].partition('"')[0]
    sent = {"data": b"x", "content_type": "application/octet-stream"}
    assert strict.post(f"{address}0/", **sent).status_code == 403
    assert strict.post(f"{address}0/", **sent, headers={"X-CSRFToken": token}).status_code == 200


def test_only_the_owner_uploads_and_only_before_the_study_begins(
    draft: Any, make_user: Any, sign_in: Any, settings: Any
):
    study, _, client = draft
    state = _model()
    colleague = make_user("researcher", study.organisation)
    other = sign_in(colleague)
    type(study).objects.filter(pk=study.pk).update(state="submitted")
    for answer in (
        _upload(other, study, state.to_bytes()),
        other.post(f"/studies/{study.pk}/first-model/0/", b"x", content_type="application/octet-stream"),
    ):
        assert answer.status_code in (302, 404)
    type(study).objects.filter(pk=study.pk).update(state="running")
    assert _upload(client, study, state.to_bytes()).status_code == 302
    assert _initial(study)["kind"] == "seed" and list(settings.MODEL_FOLDER.iterdir()) == []


def test_another_model_or_a_seed_takes_its_place_and_the_file_goes(draft: Any, settings: Any):
    study, _, client = draft
    first, second = _model(5), _model(6)
    _upload(client, study, first.to_bytes())
    _upload(client, study, second.to_bytes())
    assert [path.name for path in settings.MODEL_FOLDER.iterdir()] == [model_path(second.digest).name]
    assert client.post(f"/studies/{study.pk}/first-model/", {"seed": "-1"}).status_code == 422
    assert client.post(f"/studies/{study.pk}/first-model/", {"seed": "8"}).status_code == 302
    assert _initial(study) == {"kind": "seed", "seed": 8}
    assert list(settings.MODEL_FOLDER.iterdir()) == [] and not UploadedModel.objects.exists()


def test_a_model_that_a_version_names_is_kept(draft: Any):
    study, actor, client = draft
    state = _model()
    _upload(client, study, state.to_bytes())
    study_submit(actor=actor, study=study)
    client.post(f"/studies/{study.pk}/first-model/", {"seed": "8"})
    assert model_path(state.digest).exists() and UploadedModel.objects.filter(digest=state.digest).exists()


def test_a_digest_that_was_not_uploaded_for_the_study_can_not_be_submitted(draft: Any, make_study: Any, sign_in: Any):
    """The digests of all models are public; naming one must not be enough to start from it."""
    study, actor, _ = draft
    theirs, _ = make_study(SITES)
    state = _model()
    _upload(sign_in(theirs.owner), theirs, state.to_bytes())
    plan = {**study.draft["plan"], "initial": {"kind": "pretrained", "model": state.digest}}
    type(study).objects.filter(pk=study.pk).update(draft={**study.draft, "plan": plan})
    with pytest.raises(Refused, match="not stored for this study"):
        study_submit(actor=actor, study=study)
    study.refresh_from_db()
    assert study.state == "draft" and not study.manifests.exists()
    denied = Entry.objects.get(type="study.submitted", outcome="denied")
    assert json.loads(bytes(denied.record))["reasons"] == ["MODEL"]


def test_saving_the_form_keeps_the_model(draft: Any):
    study, _, client = draft
    _upload(client, study, _model().to_bytes())
    before = _initial(study)
    page = client.get(f"/studies/{study.pk}/edit/")
    form = page.context["form"]
    assert "seed" not in form.fields and "starts from a model trained before" in page.content.decode()
    data = {}
    for name, field in form.fields.items():
        value = form.get_initial_for_field(field, name)
        if value is None or value is False:
            continue
        data[name] = (
            value if isinstance(value, (list, tuple)) and name in ("silos", "accepts") else field.prepare_value(value)
        )
    data |= {"modalities": "CR DX", "size": "64 x 64"}
    answer = client.post(f"/studies/{study.pk}/edit/", data)
    assert answer.status_code == 302, answer.context["form"].errors
    assert _initial(study) == before
