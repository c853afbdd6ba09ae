"""Addresses of the pages about rounds and results, and of the landing page."""

from django.urls import path

from federation import download_views, draft_model_views, report_views, rollback_views, views

app_name = "federation"
urlpatterns = [
    path("", views.waiting, name="waiting"),
    path("studies/<slug:pk>/report.json", report_views.study_report, name="report"),
    path("studies/<slug:pk>/rounds/", views.rounds, name="rounds"),
    path("studies/<slug:pk>/rounds.csv", views.rounds_csv, name="rounds_csv"),
    path("studies/<slug:pk>/rounds/live/", views.rounds_live, name="rounds_live"),
    path("studies/<slug:pk>/rounds/<int:number>.<int:attempt>/", views.round_page, name="round"),
    path("studies/<slug:pk>/rounds/<int:number>.<int:attempt>/live/", views.round_live, name="round_live"),
    path("studies/<slug:pk>/results/", views.results, name="results"),
    path("studies/<slug:pk>/results.csv", views.results_csv, name="results_csv"),
    path("studies/<slug:pk>/roll-back/<int:number>/", rollback_views.rollback, name="rollback"),
    path(
        "studies/<slug:pk>/roll-back/<int:number>/dismiss/", rollback_views.decide, {"decision": "dismiss"}, "dismiss"
    ),
    path(
        "studies/<slug:pk>/roll-back/<int:number>/go-back/", rollback_views.decide, {"decision": "go-back"}, "go_back"
    ),
    path("studies/<slug:pk>/first-model/", draft_model_views.first_model, name="first_model"),
    path("studies/<slug:pk>/first-model/<int:index>/", draft_model_views.first_model_piece, name="first_model_piece"),
    path("studies/<slug:pk>/models/<int:number>/", download_views.model, name="model"),
    path(
        "studies/<slug:pk>/models/<int:number>.safetensors", download_views.model_safetensors, name="model_safetensors"
    ),
]
