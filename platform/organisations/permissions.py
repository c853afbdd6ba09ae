"""The roles machinery under the name that views use; it lives in `portal.access`, below every app.

from organisations.permissions import public, role_required

@role_required("admin", "steward")
def page(request): request.person (portal.access.Person), request.actor (portal.actors.Actor)
"""

from portal.access import ROLES, Access, Person, public, role_required, signed_in

__all__ = ["ROLES", "Access", "Person", "public", "role_required", "signed_in"]
