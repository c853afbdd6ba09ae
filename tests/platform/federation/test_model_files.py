"""Global models as files: exported so that the world's tools read them, uploaded only when they are models."""

from __future__ import annotations

import io

import numpy as np
import pytest

from federation.models import GlobalModel, Purpose, Stage, UploadedModel
from federation.services.export import safetensors_blocks
from federation.services.models import model_upload
from portal.problems import Refused
from protocol.initial_model import initial_state, pretrained_state
from protocol.model_state import ModelState, StateError, TensorSpec


def test_an_exported_model_is_read_by_the_safetensors_package(network):
    safetensors = pytest.importorskip("safetensors.numpy")
    world = network(4, max_rounds=1)
    world.play()
    model = GlobalModel.objects.get(study=world.study, number=1)
    data = b"".join(safetensors_blocks(model))
    tensors = safetensors.load(data)
    state = next(iter(world.silos.values())).states[model.digest]
    assert sorted(tensors) == ["layer.bias", "layer.weight"], "local tensors never leave a hospital"
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, state.tensor(name))
        assert tensor.shape == state.tensor(name).shape


def test_an_exported_model_says_where_it_comes_from(network, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    world = network(4, max_rounds=1)
    world.play()
    model = GlobalModel.objects.get(study=world.study, number=0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"".join(safetensors_blocks(model)))
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["digest"] == model.digest
        assert file.metadata()["study"] == world.study.pk


def test_a_study_starts_from_an_uploaded_model(network, settings):
    table = (TensorSpec("layer.weight", (4, 6)),)
    start = initial_state(table, 41)
    assert model_upload(file=io.BytesIO(start.to_bytes())) == start.digest
    world = network(4, max_rounds=1, table=table, initial={"kind": "pretrained", "model": start.digest})
    UploadedModel.objects.create(study=world.study, digest=start.digest, size=start.length, tensors=1, length=24)
    for silo in world.silos.values():
        silo.first_state = lambda silo=silo: ModelState.from_bytes(silo.ask("GET", f"models/{start.digest}").body)
    world.play()
    assert world.state == "completed"
    assert GlobalModel.objects.get(study=world.study, number=0).digest == start.digest


def test_a_study_starts_from_uploaded_safetensors_in_another_order(network):
    """The file's order is by name, as common tools write it; the first model is in the network's, with its local tensors."""
    safetensors = pytest.importorskip("safetensors.numpy")
    table = (
        TensorSpec("layer.weight", (8, 16)),
        TensorSpec("layer.bias", (8,)),
        TensorSpec("norm.mean", (4,), "local"),
    )
    drawn = initial_state(table, 41)
    tensors = {name: drawn.tensor(name).copy() for name in ("layer.weight", "layer.bias")}
    tensors["norm.mean"] = np.ones(4, dtype=np.float32)
    given = model_upload(file=io.BytesIO(safetensors.save(tensors)))
    world = network(4, max_rounds=1, table=table, initial={"kind": "pretrained", "model": given})
    UploadedModel.objects.create(study=world.study, digest=given, size=0, tensors=3, length=140)
    for silo in world.silos.values():
        silo.first_state = lambda silo=silo: pretrained_state(
            world.table, ModelState.from_bytes(silo.ask("GET", f"models/{given}").body)
        )
    world.play()
    assert world.state == "completed"
    first = GlobalModel.objects.get(study=world.study, number=0)
    assert first.digest == drawn.digest != given


def test_a_model_of_somebody_elses_study_is_no_start(network):
    """Its digest is in the public log; a plan that names it must not open it to other hospitals or owners."""
    table = (TensorSpec("layer.weight", (4, 6)),)
    start = initial_state(table, 41)
    model_upload(file=io.BytesIO(start.to_bytes()))
    world = network(4, table=table, initial={"kind": "pretrained", "model": start.digest})
    with pytest.raises(Refused, match="NOT_YOUR_STUDY"):
        world.silos["site-1"].ask("GET", f"models/{start.digest}")
    for silo in world.silos.values():
        silo.first_state = lambda: start
    world.play()
    assert world.state == "paused" and not GlobalModel.objects.exists()


def test_a_study_whose_uploaded_model_is_missing_is_paused_with_the_reason(network):
    table = (TensorSpec("layer.weight", (4, 6)),)
    start = initial_state(table, 41)
    world = network(4, table=table, initial={"kind": "pretrained", "model": start.digest})
    for silo in world.silos.values():
        silo.first_state = lambda: start
    world.play()
    assert world.state == "paused"
    assert "not stored on the portal" in world.rounds[0].failure["sentence"]


@pytest.mark.parametrize("data", [b"", b"not a model", b"consilium-state/1\n" + b"\0\0\0\2{}"])
def test_an_upload_that_is_no_model_is_refused_and_leaves_nothing(portal_home, settings, data):
    with pytest.raises(StateError):
        model_upload(file=io.BytesIO(data))
    assert list(settings.MODEL_FOLDER.iterdir()) == []


def test_a_model_in_pieces_is_the_model(network, monkeypatch):
    import federation.api

    world = network(4, max_rounds=1)
    world.play(until=lambda w: w.round.purpose == Purpose.TRAIN and w.round.stage == Stage.KEYS)
    monkeypatch.setattr(federation.api, "PIECE", 100)
    silo, digest = world.silos["site-1"], world.round.model_digest
    first = silo.ask("GET", f"models/{digest}", query="chunk=0")
    count = int(first.headers["X-Chunks"])
    body = b"".join(silo.ask("GET", f"models/{digest}", query=f"chunk={k}").body for k in range(count))
    assert ModelState.from_bytes(body).digest == digest
    with pytest.raises(Refused) as refused:
        silo.ask("GET", f"models/{digest}", query=f"chunk={count}")
    assert refused.value.status == 404


@pytest.mark.parametrize("query", ["chunk=-1", "chunk=x", "chunk=1e3", "chunk=٣"])
def test_a_piece_is_named_by_a_whole_number(network, query):
    world = network(4)
    with pytest.raises(Refused, match="BAD_REQUEST"):
        world.silos["site-1"].ask("GET", f"models/{'0' * 64}", query=query)
