"""Addresses of the node API for rounds and models, below /api/v1/."""

from django.urls import path

from federation import api_views

urlpatterns = [
    path("silo/assignments", api_views.assignments, name="api-assignments"),
    path("rounds/<str:round>/<str:kind>", api_views.message, name="api-round"),
    path("rounds/<str:round>/update/<int:index>", api_views.piece, name="api-round-chunk"),
    path("models/<str:digest>", api_views.model, name="api-model"),
]
