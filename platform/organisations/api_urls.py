"""Addresses of enrolment and trust below /api/v1/."""

from django.urls import path

from organisations import api

urlpatterns = [
    path("silo/key", api.key, name="api-silo-key"),
    path("silo/enrol", api.enrol, name="api-silo-enrol"),
    path("silo/trust", api.trust, name="api-silo-trust"),
]
