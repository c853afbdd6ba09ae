"""What governance does, in one list. Each function takes keywords, checks the rules, and writes its evidence entry in the
same transaction; a refusal is `portal.problems.Refused` and is recorded too.
"""

from governance.approvals import approval_receive
from governance.policies import policy_propose, policy_receive
from governance.reviews import review_decide
from governance.studies import (
    study_complete,
    study_draft,
    study_edit,
    study_expire,
    study_pause,
    study_resume,
    study_running,
    study_start,
    study_stop,
    study_submit,
    study_withdraw,
)

__all__ = [
    "approval_receive",
    "policy_propose",
    "policy_receive",
    "review_decide",
    "study_complete",
    "study_draft",
    "study_edit",
    "study_expire",
    "study_pause",
    "study_resume",
    "study_running",
    "study_start",
    "study_stop",
    "study_submit",
    "study_withdraw",
]
