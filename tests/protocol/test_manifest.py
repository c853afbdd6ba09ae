"""The manifest: one exact study, one spelling, nothing executable in it, and words that say what was signed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import manifest_words
from protocol.canonical import b64, decode, digest, encode
from protocol.manifest import (
    MAX_BYTES,
    Manifest,
    ManifestError,
    describe,
    freeze,
    parse_manifest,
    study_facts,
    withstood_colluders,
)


def example() -> dict[str, Any]:
    return {
        "schema": "consilium/manifest/1",
        "study": "st-k3v9q2m7xw4hzt5b",
        "title": "Pneumonia on chest X-rays",
        "summary": "Can one model find pneumonia in four hospitals?",
        "purpose": {
            "kind": "disease",
            "diseases": ["DOID:552"],
            "methods": False,
            "commercial": False,
            "all_non_profit": True,
            "genetic": False,
            "ethics": {"ref": "EK-2026-17", "expires": "2028-01-01"},
            "countries": ["AT", "DE"],
            "accepts": ["DUO:0000019"],
        },
        "cohort": {"modalities": ["CR", "DX"], "min_patients": 30},
        "plan": {
            "network": {"name": "DenseNet", "args": {"spatial_dims": 2, "block_config": [2, 2], "norm": {"group": 8}}},
            "input": {"size": [64, 64], "channels": 1, "window": "full"},
            "transforms": [{"name": "RandFlip", "args": {"prob": 0.5}}],
            "task": "binary",
            "loss": "bce",
            "optimiser": {"name": "adam", "lr": 0.001, "weight_decay": 0.0},
            "batch": 32,
            "local_epochs": 2,
            "strategy": {"name": "fedavg", "server_lr": 1.0},
            "personalisation": "none",
            "frozen": [],
            "stopping": {"max_rounds": 25, "patience": 5, "min_delta": 0.001, "worse_by": 0.02},
            "evaluation": {"bins": 256},
            "initial": {"kind": "seed", "seed": 7},
        },
        "aggregation": {
            "protocol": "consilium-secagg/1",
            "min_roster": 3,
            "min_participants": 3,
            "word_bits": 32,
            "fraction_bits": 20,
            "clip_norm": 10.0,
            "error_feedback": False,
            "sketch": False,
            "check_words": "required",
            "sparse_from": 64,
            "drawn": None,
        },
        "privacy": {"mode": "none"},
        "participants": [
            {
                "silo": f"site-{number}",
                "organisation": f"Hospital {number}",
                "country": "DE" if number < 4 else "AT",
                "public": b64(bytes([number]) * 32),
                "weight": 1,
            }
            for number in (1, 2, 3, 4)
        ],
        "limits": {"round_seconds": 600, "unmask_seconds": 86400},
        "dates": {"start": "2026-12-01", "end": "2027-06-30"},
        "log": {"vkey": "localhost/consilium+0123abcd+AQID"},
        "witnesses": {"vkeys": ["site-1+0123abcd+BAAA", "site-2+0123abcd+BAAB"], "false": 1},
    }


def changed(*steps: Any, value: Any) -> dict[str, Any]:
    body = example()
    place: Any = body
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = value
    return body


def test_frozen_bytes_parse_to_the_same_study_and_the_same_digest() -> None:
    data = freeze(example())
    manifest = parse_manifest(data)
    assert freeze(manifest) == data == encode(example(), floats=True)
    assert digest(data) == digest(freeze(decode(data, floats=True)))
    assert manifest.participant("site-2").weight == 1
    assert manifest.public_keys()["site-3"] == bytes([3]) * 32
    assert manifest.total_weight(["site-1", "site-2", "site-2"]) == 2


def test_a_stranger_has_no_weight() -> None:
    with pytest.raises(KeyError):
        parse_manifest(freeze(example())).total_weight(["site-9"])


def test_freezing_writes_every_default_so_that_one_study_has_one_digest() -> None:
    body = example()
    del body["limits"]["unmask_seconds"]
    del body["witnesses"]["false"]
    body["witnesses"]["vkeys"] = []
    frozen = freeze(body)
    assert parse_manifest(frozen).limits.unmask_seconds == 86_400
    with pytest.raises(ManifestError, match="freeze it first"):
        parse_manifest(encode(body, floats=True))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (changed("extra", value=1), "extra"),
        (changed("plan", "optimiser", "momentum", value=0.9), "plan.optimiser.momentum"),
        (changed("schema", value="consilium/manifest/2"), "schema"),
        (changed("study", value="k3v9"), "study"),
        (changed("study", value="st-a.1"), "study"),
        (changed("study", value="st-abc\n"), "study"),
        (changed("title", value=""), "title"),
        (changed("purpose", "kind", value="marketing"), "purpose.kind"),
        (changed("purpose", "diseases", value=[]), "purpose"),
        (changed("purpose", "kind", value="hmb"), "purpose"),
        (changed("purpose", "diseases", value=["DOID:552", "DOID:552"]), "purpose.diseases"),
        (changed("purpose", "methods", value=None), "purpose.methods"),
        (changed("purpose", "commercial", value="false"), "purpose.commercial"),
        (changed("purpose", "genetic", value=0), "purpose.genetic"),
        (changed("purpose", "ethics", "expires", value="2028-1-1"), "purpose.ethics.expires"),
        (changed("purpose", "ethics", "expires", value="2028-02-30"), "purpose.ethics.expires"),
        (changed("purpose", "countries", value=["DE"]), "AT"),
        (changed("purpose", "countries", value=["at", "DE"]), "purpose.countries"),
        (changed("purpose", "accepts", value=["DUO:0000042"]), "accepts"),
        (changed("cohort", "min_patients", value=0), "cohort.min_patients"),
        (changed("cohort", "modalities", value=[]), "cohort.modalities"),
        (changed("plan", "batch", value=True), "plan.batch"),
        (changed("plan", "optimiser", "lr", value=-0.1), "plan.optimiser.lr"),
        (changed("plan", "network", "args", value={"a": "$import os"}), "plan.network.args"),
        (changed("plan", "network", "args", value={"a": [{"b": "@net"}]}), "plan.network.args"),
        (changed("plan", "network", "args", value={"_target_": "os.system"}), "plan.network.args"),
        (changed("plan", "network", "args", value={"$x": 1}), "plan.network.args"),
        (changed("plan", "network", "args", value={"a": [[[[[[[1]]]]]]]}), "plan.network.args"),
        (changed("plan", "network", "name", value="os.system"), "plan.network.name"),
        (changed("plan", "transforms", 0, "args", value={"a": "%macro"}), "plan.transforms.0.args"),
        (changed("plan", "evaluation", "bins", value=1025), "plan.evaluation.bins"),
        (changed("plan", "initial", value={"kind": "seed", "seed": -1}), "plan.initial"),
        (changed("plan", "initial", value={"kind": "pretrained", "model": "sha256:00"}), "plan.initial"),
        (changed("plan", "initial", value={"kind": "pickle"}), "plan.initial"),
        (changed("aggregation", "min_roster", value=2), "aggregation.min_roster"),
        (changed("aggregation", "min_roster", value=5), "aggregation.min_roster"),
        (changed("aggregation", "min_participants", value=4), "aggregation.min_participants"),
        (changed("aggregation", "sketch", value="yes"), "aggregation.sketch"),
        (changed("aggregation", "check_words", value="never"), "aggregation.check_words"),
        (changed("aggregation", "drawn", value=2), "aggregation.drawn"),
        (changed("aggregation", "drawn", value=5), "aggregation.drawn"),
        (changed("aggregation", "word_bits", value=64), "aggregation.word_bits"),
        (changed("aggregation", "word_bits", value=20), "aggregation.word_bits"),
        (changed("aggregation", "word_bits", value=24), "overflow a sum of 24 bits"),
        (changed("aggregation", "fraction_bits", value=26), "aggregation.fraction_bits"),
        (changed("privacy", "mode", value="some"), "privacy.mode"),
        (changed("participants", value=example()["participants"][:2]), "participants"),
        (changed("participants", value=example()["participants"][::-1]), "sorted"),
        (changed("participants", 0, "silo", value="site-2"), "participants"),
        (changed("participants", 0, "silo", value="Site-1"), "participants.0.silo"),
        (changed("participants", 0, "public", value=b64(bytes([2]) * 32)), "same key"),
        (changed("participants", 0, "public", value=b64(bytes(31))), "participants.0.public"),
        (changed("participants", 0, "public", value="*"), "participants.0.public"),
        (changed("participants", 0, "weight", value=0), "participants.0.weight"),
        (changed("dates", "end", value="2026-11-30"), "dates"),
        (changed("log", "vkey", value="localhost"), "log.vkey"),
        (changed("witnesses", "false", value=2), "witnesses.false"),
        (changed("title", value="e\u0301"), "canonical"),
        (changed("title", value=b"bytes"), "canonical"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ManifestError, match=field.replace(".", r"\.")):
        freeze(body)


def test_every_field_is_required() -> None:
    for section, content in example().items():
        body = example()
        del body[section]
        with pytest.raises(ManifestError, match=section):
            freeze(body)
        if isinstance(content, dict):
            for field in content:
                if (section, field) in {("limits", "unmask_seconds"), ("witnesses", "false")}:
                    continue
                body = copy.deepcopy(example())
                del body[section][field]
                with pytest.raises(ManifestError, match=f"{section}.*{field}|{section}"):
                    freeze(body)


def test_many_faults_are_counted_not_listed() -> None:
    with pytest.raises(ManifestError, match="and 9 more"):
        freeze({})


def test_only_the_canonical_spelling_is_read() -> None:
    data = freeze(example())
    with pytest.raises(ManifestError, match="canonical"):
        parse_manifest(data + b"\n")
    with pytest.raises(ManifestError, match="canonical"):
        parse_manifest(data.replace(b'{"aggregation"', b'{"title":"x","aggregation"', 1))
    with pytest.raises(ManifestError, match="bytes at most"):
        parse_manifest(b" " * (MAX_BYTES + 1))


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail_otherwise_than_with_its_own_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(data)


@given(st.data())
def test_one_changed_byte_is_another_study_or_none(data: st.DataObject) -> None:
    frozen = freeze(example())
    place = data.draw(st.integers(0, len(frozen) - 1))
    other = bytearray(frozen)
    other[place] ^= data.draw(st.integers(1, 255))
    try:
        manifest = parse_manifest(bytes(other))
    except ManifestError:
        return
    assert digest(freeze(manifest)) == digest(bytes(other)) != digest(frozen)


@given(
    n=st.integers(3, 40),
    weight=st.integers(1, 50),
    clip=st.floats(0.001, 1000),
    bits=st.integers(1, 30),
)
def test_an_accepted_study_can_never_overflow_its_words(n: int, weight: int, clip: float, bits: int) -> None:
    body = example()
    body["participants"] = [
        {"silo": f"s{i:03}", "organisation": "H", "country": "DE", "public": b64(bytes([i]) * 32), "weight": weight}
        for i in range(n)
    ]
    body["aggregation"].update(clip_norm=clip, fraction_bits=bits)
    fits = n * (clip * weight * 2.0**bits + 1) < 2.0**31
    if fits:
        assert freeze(body)
    else:
        with pytest.raises(ManifestError, match="fraction_bits"):
            freeze(body)


def test_the_facts_for_the_policy_come_from_the_manifest() -> None:
    facts = study_facts(parse_manifest(freeze(example())))
    assert facts == {
        "study_id": "st-k3v9q2m7xw4hzt5b",
        "purpose": "disease",
        "diseases": ["DOID:552"],
        "methods": False,
        "commercial": False,
        "all_non_profit": True,
        "genetic": False,
        "ethics": {"ref": "EK-2026-17", "expires": "2028-01-01"},
        "countries": ["AT", "DE"],
        "accepts": ["DUO:0000019"],
        "institutions": ["Hospital 1", "Hospital 2", "Hospital 3", "Hospital 4"],
        "end": "2027-06-30",
        "min_cohort": 30,
        "min_participants": 3,
        "max_rounds": 25,
        "model_family": "DenseNet",
        "partners": ["site-1", "site-2", "site-3", "site-4"],
    }
    assert study_facts(parse_manifest(freeze(changed("purpose", "ethics", value=None))))["ethics"] is None


@pytest.mark.parametrize(
    ("silos", "min_roster", "min_participants", "c"),
    [(4, 4, 3, 1), (7, 7, 5, 2), (10, 10, 7, 3), (4, 3, 3, 1), (4, 3, 2, 0), (3, 3, 3, 1), (5, 5, 5, 2), (7, 5, 5, 2)],
)
def test_the_words_say_how_many_colluders_the_masks_withstand(
    silos: int, min_roster: int, min_participants: int, c: int
) -> None:
    body = example()
    body["participants"] = [
        {"silo": f"s{i}", "organisation": f"H{i}", "country": "DE", "public": b64(bytes([i]) * 32), "weight": 1}
        for i in range(silos)
    ]
    body["aggregation"].update(min_roster=min_roster, min_participants=min_participants, clip_norm=1.0)
    manifest = parse_manifest(freeze(body))
    assert withstood_colluders(manifest) == c
    words = dict(describe(manifest))["Who would have to conspire"]
    assert {0: "against the portal alone", 1: "one other participant"}.get(c, f"{c} other participants") in words


def words_of(body: dict[str, Any], **options: Any) -> dict[str, str]:
    return dict(describe(parse_manifest(freeze(body)), **options))


def test_the_study_is_told_in_words() -> None:
    words = words_of(example(), weights=32_000)
    assert words["Study"] == "Pneumonia on chest X-rays. Can one model find pneumonia in four hospitals?"
    assert words["Purpose"].startswith("Research on pneumonia (DOID:552). It does not set out to develop methods.")
    assert words["Ethics approval"] == "EK-2026-17, valid until 1 January 2028."
    assert "computed radiography (CR) and digital radiography (DX)" in words["Images"]
    assert "at least 30 such patients" in words["Images"] and "64 x 64 pixels" in words["Images"]
    assert "one masked vector of 32,000 numbers" in words["What leaves the hospital"]
    assert "At most 25 rounds" in words["What leaves the hospital"]
    assert "520 numbers" in words["What leaves the hospital"]
    assert "at least 3 hospitals" in words["What the portal can read"]
    assert "no differential privacy" in words["Privacy of patients"]
    assert "Hospital 4 (AT, silo site-4). Each counts the same" in words["Partners"]
    assert "one may fall out" in words["Partners"]
    assert "publication required" in words["Obligations"]
    assert words["Duration"].startswith(
        "From 1 December 2026 to 30 June 2027, at most 25 rounds of at most 10 minutes each"
    )
    assert "sooner" in words["Duration"]
    assert words["Proof"] == (
        "Every step is recorded in the log localhost/consilium, which cannot be changed unseen. "
        "2 witnesses are named for it, of whom 1 may be false."
    )


def test_the_words_follow_each_choice() -> None:
    body = example()
    body["summary"] = ""
    body["purpose"].update(
        kind="hmb",
        diseases=[],
        methods=True,
        commercial=True,
        all_non_profit=False,
        genetic=True,
        ethics=None,
        accepts=[],
    )
    body["cohort"].update(modalities=["ZZ"], min_patients=1)
    body["plan"]["input"]["window"] = "dicom"
    body["plan"]["transforms"] = []
    body["plan"]["initial"] = {"kind": "pretrained", "model": "sha256:" + "0" * 64}
    body["plan"]["stopping"]["patience"] = None
    body["participants"] = body["participants"][:3]
    body["participants"][0]["weight"] = 2
    body["witnesses"] = {"vkeys": [], "false": 0}
    body["limits"]["round_seconds"] = 90
    words = words_of(body)
    assert words["Study"] == "Pneumonia on chest X-rays."
    assert "Health, medical" in words["Purpose"] and "may be used commercially" in words["Purpose"]
    assert "also develops methods" in words["Purpose"] and "genetic study" in words["Purpose"]
    assert "works for profit" in words["Purpose"]
    assert words["Ethics approval"] == "None is attached."
    assert (
        "Images of ZZ" in words["Images"]
        and "1 such patient." in words["Images"]
        and "display window" in words["Images"]
    )
    assert "trained before" in words["Training"]
    assert "one number for each weight" in words["What leaves the hospital"]
    assert "weight 2" in words["Partners"] and "none may fall out" in words["Partners"]
    assert words["Obligations"] == "The study accepts none."
    assert "90 seconds" in words["Duration"] and "sooner" not in words["Duration"]
    assert "No witness" in words["Proof"]
    assert words_of(changed("title", value="Pneumonia?"))["Study"].startswith("Pneumonia? Can")
    assert words_of(changed("purpose", "ethics", "expires", value="2027-01-01"))["Ethics approval"].endswith(
        "It ends before the study does."
    )
    network = {"name": "constant", "args": {"parameters": 7_000_000}}
    constant = words_of(changed("plan", "network", value=network))
    assert constant["Training"].startswith("None") and "7,000,000 numbers" in constant["What leaves the hospital"]


def test_seven_partners_may_lose_two() -> None:
    body = example()
    body["participants"] = [
        {"silo": f"s{i}", "organisation": f"H{i}", "country": "DE", "public": b64(bytes([i]) * 32), "weight": 1}
        for i in range(7)
    ]
    assert "2 may fall out" in words_of(body)["Partners"]


def test_the_words_say_what_a_sketch_and_a_check_word_tell() -> None:
    without = words_of(example())["What the portal can read"]
    assert "sketch" not in without
    assert "says nothing about its update by itself" in without and "is thrown away, and the round with it" in without
    body = example()
    body["aggregation"].update(sketch=True, check_words="optional")
    words = words_of(body)
    reads = words["What the portal can read"]
    assert "256 numbers about its own update, once, and only for a list" in reads
    assert "the portal and all partners" in reads and "left out of the sum" in reads
    assert "never asked for in a study in which the hospitals share noise" in reads
    assert "shown as unverified" in reads and "nobody would notice in that round" in reads
    assert "256 numbers (a sketch)" in words["What leaves the hospital"]


def test_the_words_say_what_is_frozen_and_what_is_sent_later() -> None:
    plain = words_of(example())["What leaves the hospital"]
    assert "not trained" not in plain and "rounding takes" not in plain
    frozen = words_of(changed("plan", "frozen", value=["features", "stem.conv"]))["What leaves the hospital"]
    assert "Layers that are not trained (features and stem.conv) are not in it." in frozen
    later = words_of(changed("aggregation", "error_feedback", value=True))["What leaves the hospital"]
    assert "What the rounding takes away stays in the hospital and is sent with its next vector." in later


def open_study(**numbers: Any) -> dict[str, Any]:
    body = example()
    body["aggregation"].update(fraction_bits=None, **numbers)
    return body


def test_scales_may_be_left_open_where_words_say_enough() -> None:
    for bits in (32, 24, 16, 12):
        manifest = parse_manifest(freeze(open_study(word_bits=bits)))
        assert manifest.fixed_point().fraction_bits is None and manifest.fixed_point().silos == 4


def test_an_open_study_whose_words_say_too_little_is_refused_with_what_to_change() -> None:
    body = open_study(word_bits=12)
    body["participants"][0]["weight"] = 40
    with pytest.raises(
        ManifestError, match=r"less than 4 bits of its own, .* take more word_bits, fewer silos or weights"
    ):
        freeze(body)
    with pytest.raises(ManifestError, match=r"clip_norm 100000, .* a smaller clip_norm"):
        freeze(open_study(word_bits=16, clip_norm=100000.0))


@pytest.mark.parametrize("layer", ["", ".a", "a b", "a/b", "$a", "a" * 256])
def test_a_frozen_layer_is_a_name(layer: str) -> None:
    with pytest.raises(ManifestError, match=r"plan\.frozen"):
        freeze(changed("plan", "frozen", value=[layer]))
    with pytest.raises(ManifestError, match=r"plan\.frozen"):
        freeze(changed("plan", "frozen", value=["a", "a"]))


def test_the_words_say_that_hospitals_are_drawn() -> None:
    assert "drawn" not in words_of(example())["Partners"]
    partners = words_of(changed("aggregation", "drawn", value=3))["Partners"]
    assert "In each training round 3 of them take part" in partners and "nobody chooses" in partners
    assert "none may fall out" in partners, "of the three that are drawn"


def test_small_words() -> None:
    assert manifest_words.duration(86_400) == "1 day"
    assert manifest_words.duration(7_200) == "2 hours"
    assert manifest_words.duration(61) == "61 seconds"
    assert manifest_words.listed(["a"]) == "a"


def test_a_manifest_cannot_be_changed_after_it_was_read() -> None:
    manifest = parse_manifest(freeze(example()))
    with pytest.raises(ValueError, match="frozen"):
        manifest.title = "Another"  # type: ignore[misc]
    assert isinstance(manifest, Manifest)
