"""Every address of the page, who may open it, and the view behind it. Default deny: what is not in ROUTES does not exist.

The tests walk this table as every role; a route that they do not know fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from silo_node.page import views, views_decide, views_entrance, views_sign
from silo_node.page.asking import View

ANYBODY: Final = frozenset({"nobody", "it", "steward"})
SIGNED_IN: Final = frozenset({"it", "steward"})
STEWARD: Final = frozenset({"steward"})


@dataclass(frozen=True)
class Route:
    """roles: who may open it. get: shows, and changes nothing. post: changes something, from a form of ours."""

    path: str
    roles: frozenset[str]
    get: View | None = None
    post: View | None = None


ROUTES: Final = (
    Route("/sign-in", ANYBODY, get=views_entrance.ask, post=views_entrance.sign_in),
    Route("/sign-out", SIGNED_IN, post=views_entrance.sign_out),
    Route("/password", SIGNED_IN, get=views_entrance.password, post=views_entrance.set_password),
    Route("/", SIGNED_IN, get=views.status),
    Route("/now", SIGNED_IN, get=views.now),
    Route("/images", SIGNED_IN, get=views.images),
    Route("/policy", SIGNED_IN, get=views.policy, post=views.preview),
    Route("/policy/decide", STEWARD, post=views_sign.policy_step),
    Route("/policy/decide/sign", STEWARD, post=views_sign.policy_sign),
    Route("/consent", SIGNED_IN, get=views.consent),
    Route("/studies", SIGNED_IN, get=views_decide.studies),
    Route("/studies/{study}", SIGNED_IN, get=views_decide.study),
    Route("/studies/{study}/decide", STEWARD, post=views_decide.second_step),
    Route("/studies/{study}/sign", STEWARD, post=views_decide.sign),
    Route("/studies/{study}/resume", STEWARD, post=views_sign.resume_step),
    Route("/studies/{study}/resume/sign", STEWARD, post=views_sign.resume_sign),
    Route("/passkeys", STEWARD, get=views_decide.passkeys, post=views_decide.register),
    Route("/passkeys/draft", STEWARD, post=views_sign.trust_step),
    Route("/passkeys/draft/sign", STEWARD, post=views_sign.trust_sign),
    Route("/passkeys/draft/apply", STEWARD, post=views_sign.trust_apply),
    Route("/budget", SIGNED_IN, get=views.budget),
    Route("/sent", SIGNED_IN, get=views.sent),
    Route("/sent.csv", SIGNED_IN, get=views.sent_file),
    Route("/check", SIGNED_IN, get=views.check, post=views.check_now),
)
