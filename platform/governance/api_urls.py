"""Addresses of policies, manifests and approvals below /api/v1/."""

from django.urls import path

from governance import api

urlpatterns = [
    path("silo/policy", api.policy, name="api-silo-policy"),
    path("studies/<str:study>/manifest", api.manifest, name="api-study-manifest"),
    path("studies/<str:study>/approval", api.approval, name="api-study-approval"),
]
