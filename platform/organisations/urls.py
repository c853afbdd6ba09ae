"""Addresses of the pages about hospitals and silos."""

from django.urls import path

from organisations import views

app_name = "organisations"
urlpatterns = [
    path("hospitals/", views.hospitals, name="hospitals"),
    path("hospitals.csv", views.hospitals_csv, name="hospitals_csv"),
    path("hospitals/new/", views.hospital_new, name="hospital_new"),
    path("hospitals/<slug:slug>/", views.hospital, name="hospital"),
    path("silos/invite/", views.silo_invite, name="silo_invite"),
    path("silos/<slug:name>/", views.silo, name="silo"),
    path("silos/<slug:name>/confirm/", views.silo_confirm, name="silo_confirm"),
    path("silos/<slug:name>/revoke/", views.silo_revoke, name="silo_revoke"),
]
