"""The log in words for its pages: what each type of entry says, and the questions that an auditor asks."""

from collections.abc import Sequence
from dataclasses import dataclass

TYPE_WORDS = {
    "log.genesis": "The log began",
    "auth.login": "A person signed in",
    "auth.failed": "A sign-in or an act was refused",
    "audit.viewed": "The log was looked at",
    "audit.exported": "The log was exported",
    "audit.erased": "A private payload was erased",
    "organisation.registered": "A hospital was registered",
    "role.changed": "A person's role changed",
    "key.enrolled": "A silo's key was enrolled or confirmed",
    "key.rotated": "A silo's key followed another",
    "key.revoked": "A silo's key was revoked",
    "policy.changed": "A hospital signed a policy",
    "policy.proposed": "A policy was proposed",
    "study.drafted": "A study was drafted",
    "study.submitted": "A study was submitted",
    "study.approved": "A study was approved",
    "study.rejected": "A study was rejected",
    "study.withdrawn": "An approval or a study was withdrawn",
    "study.activated": "A study became active",
    "study.paused": "A study was paused",
    "study.resumed": "A study was resumed",
    "study.completed": "A study was completed",
    "study.stopped": "A study was stopped",
    "study.expired": "A study expired",
    "match.decided": "A policy was matched against a study",
    "round.started": "A round was announced",
    "round.cohort": "A silo reported its cohort's root",
    "round.finished": "A round finished",
    "round.failed": "A round failed",
    "round.refused": "A silo refused a round",
    "update.exported": "Something left a hospital",
    "model.released": "A model was made",
    "rollback.proposed": "Going back to an earlier model was proposed",
    "rollback.withdrawn": "A proposal to go back was withdrawn",
    "rollback.decided": "An admin decided whether to go back",
    "dp.spent": "Privacy budget was spent",
    "dataset.registered": "A data set was registered",
    "data.accessed": "A silo read its own data",
    "consent.recorded": "A consent was recorded",
    "consent.withdrawn": "A consent was withdrawn",
    "silo.checkpoint": "A silo's own log was anchored",
    "witness.cosigned": "A witness cosigned",
    "witness.refused": "A witness refused",
    "software.updated": "Software changed",
}
GROUPS = (
    ("study", "studies and decisions"),
    ("match", "policy matches"),
    ("policy", "policies"),
    ("round", "rounds"),
    ("update", "what left a hospital"),
    ("model", "models"),
    ("rollback", "roll-backs"),
    ("key", "keys"),
    ("organisation", "hospitals"),
    ("role", "roles"),
    ("auth", "sign-ins and refusals"),
    ("audit", "views and exports of the log"),
    ("silo", "silos' own logs"),
    ("witness", "witnesses"),
)


@dataclass(frozen=True)
class Question:
    """One question. `types`: entries that answer it, where the log has them; `page`: a URL name that answers it in words;
    `where`: "portal" (answered here), "silo" (only the hospital's own node can) or "later" (this version records no such
    entries)."""

    number: int
    text: str
    says: str
    where: str = "portal"
    types: Sequence[str] = ()
    page: str = ""


QUESTIONS = (
    Question(1, "Who approved study X, when, and on what basis?",
             "The network's decision with its reason, and each hospital's signed decision.", "portal",
             ("study.approved",), "governance:studies"),
    Question(2, "Did the hospital itself sign, or only the portal?",
             "Open a study, then its hospitals: each decision there is the hospital's own envelope, with its signer's key. "
             "The portal holds no key that could make one.", "portal", ("study.approved",), "governance:studies"),
    Question(3, "What exactly was approved?",
             "The manifest, byte for byte; its digest is the version that the approvals name. A study's overview has it.",
             "portal", ("study.submitted",), "governance:studies"),
    Question(4, "Was the model that ran the one approved?",
             "Each round names the manifest and the model's digest; each model names the round that made it.", "portal",
             ("round.started", "model.released")),
    Question(5, "Which cohort size trained version v?",
             "Silos log the bucketed size and root of each cohort in their own logs; the portal learns no size.", "silo",
             ("round.cohort",)),
    Question(6, "Was patient P's opt-out honoured?", "Only the hospital knows its patients: ask its node.", "silo"),
    Question(7, "Which rounds used patient P before?", "Only the hospital can tell, from its own log.", "silo"),
    Question(8, "How much privacy budget is spent, against which cap?",
             "This version runs studies without differential privacy and says so on each study's page.", "later", ("dp.spent",)),
    Question(9, "What left the hospital?", "Every masked update, sketch and check word: its kind, bytes and digest.", "portal",
             ("update.exported",)),
    Question(10, "Who looked at or exported the log?", "Views and exports are entries themselves.", "portal", ("audit",)),
    Question(11, "Was anything deleted or changed between two dates?",
             "Export the log twice and check that the later one continues the earlier: consilium-verify --previous.", "portal",
             (), "evidence:verify"),
    Question(12, "Do all hospitals see the same log?",
             "Each study's manifest names the silos that witness the log.", "later", ("witness",)),
    Question(13, "Which policy was in force on date D?",
             "Policies are entries with their digest and time; the list of policies has each version.", "portal",
             ("policy.changed",), "governance:policies"),
    Question(14, "What was refused, and why?", "Refusals of people, silos and rounds, with their codes.", "portal", ("denied",)),
    Question(15, "Who had which rights, and did anyone approve their own request?",
             "Changes of roles are entries; the portal refuses a decision on one's own study.", "portal",
             ("role.changed", "study.approved")),
    Question(16, "Is the log complete for silo S?",
             "Silos number what they report without gaps, and anchor their own log here.", "portal", ("silo.checkpoint",)),
)  # fmt: skip


def type_word(name: str) -> str:
    """What an entry of this type says, in words."""
    return TYPE_WORDS.get(name, name)
