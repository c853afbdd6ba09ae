"""What waits for a person, role by role: the page on which everybody lands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from federation.models import Rollback
from federation.services.rollback import GOING_ON
from governance.models import PolicyProposal, Study, StudyState
from governance.pages_selectors import hospital_rows, silos_of, visible_studies, waiting_for_steward
from organisations.models import Silo, SiloState
from organisations.pages_selectors import contact_of, silos_silent
from organisations.selectors import silos_waiting
from portal.access import Person


@dataclass
class Section:
    """One heading of the page. `key`: the partial that draws its rows; `empty`: what to say where nothing waits."""

    key: str
    title: str
    empty: str
    rows: list[Any] = field(default_factory=list)


def waiting_for(person: Person) -> list[Section]:
    """The sections of all roles that count in this session, the ones with something to do first."""
    sections: list[Section] = []
    if person.has("admin"):
        sections += _admin(person)
    if person.has("steward"):
        sections += _steward(person)
    if person.has("researcher"):
        sections += _researcher(person)
    if person.has("it"):
        sections += _it(person)
    return sorted(sections, key=lambda section: not section.rows)


def _admin(person: Person) -> list[Section]:
    submitted = list(visible_studies(person).filter(state=StudyState.SUBMITTED).order_by("submitted_at"))
    for study in submitted:
        study.matches = [row.match for row in hospital_rows(study.manifest)] if study.manifest else []
    invited = Silo.objects.filter(state=SiloState.INVITED).select_related("organisation")
    paused = visible_studies(person).filter(state=StudyState.PAUSED)
    worse = Rollback.objects.filter(study__in=visible_studies(person).filter(state__in=GOING_ON), state="open")
    return [
        Section(
            "admit", "Hospitals to admit", "No silo waits for its fingerprint to be confirmed.", list(silos_waiting())
        ),
        Section("review", "Studies to decide on", "No study waits for the network's decision.", submitted),
        Section(
            "rollback",
            "Models that got worse",
            "No study waits for a decision on going back.",
            list(worse.select_related("study", "model", "back_to")),
        ),
        Section("silent", "Silent silos", "Every active silo is in touch.", silos_silent()),
        Section("paused", "Paused studies", "No study is paused.", list(paused)),
        Section("invited", "Invited, not enrolled yet", "Every invited silo has enrolled.", list(invited)),
    ]


def _steward(person: Person) -> list[Section]:
    silos = silos_of(person, "steward")
    missing = [silo for silo in silos if not silo.policies.filter(current=True).exists()]
    proposals = PolicyProposal.objects.filter(silo__in=silos, state=PolicyProposal.State.OPEN).select_related("silo")
    seen = visible_studies(person).exclude(state__in=(StudyState.DRAFT, StudyState.SUBMITTED))
    waiting = waiting_for_steward(person)
    asked = {study.pk for study, _ in waiting}
    return [
        Section("decide", "Studies that ask for our data", "No study waits for your hospital's decision.", waiting),
        Section("sign", "Policies to sign", "No proposal waits for your signature.", list(proposals)),
        Section("nopolicy", "Silos without a policy", "Every silo of yours has a policy in force.", missing),
        Section(
            "studies",
            "Studies that we were asked for",
            "No study has asked for your hospital's data yet.",
            [study for study in seen if study.pk not in asked][:10],
        ),
    ]


def _researcher(person: Person) -> list[Section]:
    mine = Study.objects.filter(owner=person.user).select_related("organisation", "owner")
    again = mine.filter(state__in=(StudyState.REJECTED, StudyState.PAUSED))
    drafts = mine.filter(state=StudyState.DRAFT)
    rest = mine.exclude(state__in=(StudyState.REJECTED, StudyState.PAUSED, StudyState.DRAFT))
    return [
        Section("paused", "Needs you", "No study of yours is rejected or paused.", list(again)),
        Section("drafts", "My drafts", "You have no draft.", list(drafts)),
        Section("studies", "My studies", "You have not submitted a study yet.", list(rest[:20])),
    ]


def _it(person: Person) -> list[Section]:
    rows = [{"silo": silo, "contact": contact_of(silo)} for silo in silos_of(person, "it")]
    return [Section("silos", "Our silo", "Your hospital has no silo yet; the network's admin invites it.", rows)]
