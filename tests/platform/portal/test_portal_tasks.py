"""Celery is set so that a lost worker loses nothing, and beat knows only tasks that exist."""

from __future__ import annotations

from portal.celery import app


def test_every_task_of_the_beat_schedule_exists():
    app.loader.import_default_modules()
    assert app.conf.beat_schedule
    for entry in app.conf.beat_schedule.values():
        assert entry["task"] in app.tasks, entry["task"]


def test_tasks_are_acknowledged_after_the_work_and_carry_json_only():
    assert app.conf.task_acks_late and app.conf.task_reject_on_worker_lost
    assert app.conf.accept_content == ["json"] and app.conf.task_serializer == "json"
    assert app.conf.worker_prefetch_multiplier == 1
