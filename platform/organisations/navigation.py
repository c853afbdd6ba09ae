"""The bar on top of every page: who is here, in which roles, and where those roles may go."""

from dataclasses import dataclass

from django.http import HttpRequest
from django.urls import reverse

ROLE_WORDS = {
    "admin": "network admin",
    "steward": "steward",
    "researcher": "researcher",
    "it": "hospital IT",
    "auditor": "auditor",
}

# (label, name of the URL, roles that may open it, prefixes of paths that belong to it)
_PLACES = (
    ("Waiting for me", "federation:waiting", {"admin", "steward", "researcher", "it", "auditor"}, ()),
    ("Studies", "governance:studies", {"admin", "steward", "researcher", "auditor"}, ("/studies/",)),
    (
        "Hospitals",
        "organisations:hospitals",
        {"admin", "steward", "researcher", "it", "auditor"},
        ("/hospitals/", "/silos/"),
    ),
    ("Policies", "governance:policies", {"admin", "steward", "researcher", "auditor"}, ("/policies/",)),
    ("Evidence", "evidence:entries", {"admin", "steward", "researcher", "auditor"}, ("/evidence/",)),
)


@dataclass(frozen=True)
class Place:
    label: str
    href: str
    current: bool


@dataclass(frozen=True)
class Post:
    """One role of a person: the role in words, and the hospital it holds in (None: the network)."""

    role: str
    organisation: str | None


def posts(request: HttpRequest) -> list[Post]:
    """The roles of the person who is signed in, network-wide ones first."""
    person = getattr(request, "person", None)
    held = sorted(person.memberships if person else [], key=lambda each: (each.organisation_id is not None, each.role))
    return [
        Post(ROLE_WORDS.get(each.role, each.role), each.organisation.name if each.organisation else None)
        for each in held
    ]


def places(request: HttpRequest) -> list[Place]:
    """The pages that the person may open with the roles that count in this session; none before sign-in."""
    person = getattr(request, "person", None)
    if person is None or not person.user.is_authenticated:
        return []
    found = []
    for label, name, roles, prefixes in _PLACES:
        if not person.has(*roles):
            continue
        href = reverse(name)
        current = request.path == href or any(request.path.startswith(prefix) for prefix in prefixes)
        found.append(Place(label, href, current))
    return found
