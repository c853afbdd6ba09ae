"""The real node, real pictures, real training: a patient's consent is withdrawn between two rounds."""

from __future__ import annotations

import json

import pytest

from protocol.initial_model import initial_state
from protocol.transparency import verify
from silo_node import scanning
from tests.silo_node.consent.fhir_examples import consent, gics
from tests.silo_node.test_gate_cohort import PATIENTS, write_image

NETWORK = {"name": "Classifier", "args": {"channels": [2, 2], "strides": [2, 2]}}


@pytest.fixture
def opted_in(silo, portal):
    """Twelve patients with a picture each, all of whom have consented; a study of a small network, approved."""
    data, consents = silo.config.data, silo.folder / "consents"
    consents.mkdir()
    lines = ["PatientID,label,split,file"]
    for number, patient in enumerate(PATIENTS):
        write_image(data / f"image{number}.dcm", patient)
        lines.append(f"{patient},{number // 2 % 2},{'test' if number % 6 == 0 else 'train'},image{number}.dcm")
        (consents / f"{number}.json").write_text(json.dumps(consent(gics(), patient)))
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    toml = silo.folder / "silo.toml"
    toml.write_text(toml.read_text() + '\n[consent]\nsource = "folder"\npath = "consents"\n')
    scanning.scan(silo.config)
    silo.policy(consent_default="opt-in", legal_basis=None)
    portal.make_study()
    plan = json.loads(portal.manifest_bytes)["plan"]
    portal.make_study(plan={**plan, "network": NETWORK, "batch": 4, "input": {**plan["input"], "size": [16, 16]}})
    from silo_node.training import trainer

    table = trainer.build_table(portal.manifest.plan.model_dump(mode="json"))
    portal.first = initial_state(table, 1, scales=portal.manifest.fixed_point().initial(table))
    silo.decide()
    return silo


def test_a_withdrawal_between_two_rounds_of_the_real_node(opted_in, portal, tmp_path):
    silo = opted_in
    silo.train_once()
    portal.wait(lambda: portal.finished(1), 90)
    (silo.folder / "consents" / "5.json").write_text(json.dumps(consent(gics(), "PAT-0005", status="inactive")))
    portal.go_on(hold=True)
    portal.wait(lambda: portal.finished(2), 90)
    assert portal.refused() == []
    study, proof = portal.manifest.study, tmp_path / "proof.json"
    for number, member in ((1, True), (2, False)):
        done = silo.command("consent", "prove", "PAT-0005", f"{study}.{number}.1", "--out", str(proof), "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["member"] is member
        assert verify.main(["membership", str(proof), "--vkey", found["vkey"]]) == 0
    node = silo.node()
    assert [each["reasons"] for each in node.evidence.records("consent.withdrawn")] == [["INACTIVE"]]
    node.close()
    # Training deleted the pixels at its start: there is nothing left to erase.
    from silo_node.imaging import cache

    assert cache.forget(silo.config.cache, ["PAT-0005"]) == 0
    assert cache.forget(silo.config.cache, PATIENTS) == len(PATIENTS) - 1
    said = (silo.folder / "run.log").read_text()
    assert "PAT-" not in said and "Musterfrau" not in said
