"""Was this patient in the cohort of that round? A file that `consilium-verify membership` checks without this hospital.

The pseudonyms of a round's cohort stand beside the silo's log (data.accessed); their root, and the salted digest of their
number, stand in it (round.cohort). Where that payload was erased there is nothing left to prove from.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from protocol.transparency.membership import Membership, MembershipError, make_membership, verify_membership
from protocol.transparency.note import open_checkpoint
from silo_node.errors import Refused, UsageError
from silo_node.node import Node


def prove(node: Node, patient: str, round_id: str) -> tuple[bytes, Membership]:
    """(the file, what it proves), verified as anybody else would.

    Raises: UsageError for a round of which this silo knows nothing; Refused where it opened no image, or where the
    pseudonyms were erased.
    """
    node.evidence.sequence()
    cohorts = [each for each in node.evidence.find("round.cohort", round_id) if each.salt is not None]
    accessed = [each for each in node.evidence.find("data.accessed", round_id) if each.payload is not None]
    if not node.evidence.find("round.cohort", round_id):
        raise UsageError(
            f"this silo has no record of a round {round_id}: its id is study.number.attempt, as `silo status` and rounds.jsonl "
            "have it",
            "ROUND_UNKNOWN",
        )
    if not node.evidence.find("data.accessed", round_id):
        raise Refused("NO_IMAGE_OPENED", f"In round {round_id} this silo opened no image, so nobody was in its cohort.")
    if not cohorts or not accessed:
        raise Refused(
            "PSEUDONYMS_ERASED", f"The pseudonyms of round {round_id} were erased: nothing can be proved from them."
        )
    cohort, pseudonyms = cohorts[-1], sorted(bytes.fromhex(each) for each in accessed[-1].payload["subjects"])
    study = round_id.rsplit(".", 2)[0]
    own = hmac.new(node.keys.study_key(study), patient.encode(), sha256).digest()
    assert cohort.position is not None and cohort.salt is not None  # sequenced above
    file = make_membership(
        pseudonyms, own, salt=cohort.salt, record=cohort.data, proof=node.evidence.proof(cohort.position)
    )
    try:
        return file, verify_membership(file, open_note=lambda note: (open_checkpoint(note, node.keys.log_vkey), ()))
    except MembershipError as error:
        raise Refused(
            "PROOF_FAILS", f"The pseudonyms kept of round {round_id} are not those in the silo's log: {error}."
        ) from None
