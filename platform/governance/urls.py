"""Addresses of the pages about studies and policies."""

from django.urls import path, re_path

from governance import draft_views, policy_views, views

app_name = "governance"
urlpatterns = [
    path("studies/", views.studies, name="studies"),
    path("studies.csv", views.studies_csv, name="studies_csv"),
    path("studies/new/", draft_views.study_new, name="study_new"),
    path("studies/<slug:pk>/", views.study, name="study"),
    path("studies/<slug:pk>/edit/", draft_views.study_edit, name="study_edit"),
    path("studies/<slug:pk>/edit/json/", draft_views.study_json, name="study_json"),
    path("studies/<slug:pk>/hospitals/", views.study_hospitals, name="study_hospitals"),
    path("studies/<slug:pk>/evidence/", views.study_evidence, name="study_evidence"),
    path("studies/<slug:pk>/versions/<int:number>.json", views.study_manifest, name="study_manifest"),
    path("studies/<slug:pk>/decisions/<uuid:approval>.json", views.study_decision, name="study_decision"),
    re_path(
        r"^studies/(?P<pk>[-a-z0-9]+)/review/(?P<decision>approve|reject)/$", views.study_review, name="study_review"
    ),
    re_path(
        r"^studies/(?P<pk>[-a-z0-9]+)/(?P<act>submit|start|pause|resume|withdraw)/$", views.study_act, name="study_act"
    ),
    path("policies/", policy_views.policies, name="policies"),
    path("policies.csv", policy_views.policies_csv, name="policies_csv"),
    path("policies/propose/", policy_views.policy_propose, name="policy_propose"),
    path("policies/propose/preview/", policy_views.policy_preview, name="policy_preview"),
    path("policies/proposals/<int:pk>/", policy_views.policy_proposal, name="policy_proposal"),
    path("policies/proposals/<int:pk>.json", policy_views.policy_proposal_json, name="policy_proposal_json"),
    re_path(r"^policies/(?P<digest>[0-9a-f]{64})/$", policy_views.policy, name="policy"),
    re_path(r"^policies/(?P<digest>[0-9a-f]{64})\.dsse\.json$", policy_views.policy_envelope, name="policy_envelope"),
]
