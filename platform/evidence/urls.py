"""Addresses of the log's pages."""

from django.urls import path

from evidence import views

app_name = "evidence"
urlpatterns = [
    path("evidence/", views.entries, name="entries"),
    path("evidence/entries.csv", views.entries_csv, name="entries_csv"),
    path("evidence/questions/", views.questions, name="questions"),
    path("evidence/verify/", views.verify, name="verify"),
    path("evidence/verify/checkpoint", views.checkpoint, name="checkpoint"),
    path("evidence/verify/policy", views.policy_file, name="policy_file"),
    path("evidence/verify/export.zip", views.export, name="export"),
    path("evidence/entries/<uuid:pk>/", views.entry, name="entry"),
    path("evidence/entries/<uuid:pk>/record.json", views.entry_record, name="entry_record"),
    path("evidence/entries/<uuid:pk>/entry.tlog-proof", views.entry_proof, name="entry_proof"),
]
