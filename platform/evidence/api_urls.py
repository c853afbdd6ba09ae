"""Addresses of the log below /api/v1/."""

from django.urls import path

from evidence import api

urlpatterns = [
    path("log/checkpoint", api.checkpoint, name="api-log-checkpoint"),
    path("log/tile/<path:rest>", api.tile, name="api-log-tile"),
    path("log/silo-checkpoint", api.silo_checkpoint, name="api-log-silo-checkpoint"),
]
