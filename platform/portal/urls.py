"""Addresses. Each app brings its pages (`<app>.urls`) and its part of the node API (`<app>.api_urls`)."""

from django.urls import include, path

from portal import health, openapi

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("account/", include("allauth.urls")),
    path("api/v1/openapi.json", openapi.openapi, name="api-openapi"),
    path("api/v1/", include("organisations.api_urls")),
    path("api/v1/", include("governance.api_urls")),
    path("api/v1/", include("evidence.api_urls")),
    path("api/v1/", include("federation.api_urls")),
    path("", include("organisations.urls")),
    path("", include("governance.urls")),
    path("", include("evidence.urls")),
    path("", include("federation.urls")),
]
