"""The silo's Celery tasks. They take ids only, may run twice, and are made again from the disk when a broker loses them.

| queue    | pool              | tasks                                                                    |
|----------|-------------------|--------------------------------------------------------------------------|
| training | one child process | `train` (also builds the first model's table), `preload`, `tidy` the disk |
| control  | threads           | `scan` the DICOM folder, `fetch` from the PACS, `erase` the pictures of who has opted out |

Nothing heavy is imported before a task needs it: a child that only ever adds a constant never loads torch.
"""

from __future__ import annotations

import os
from typing import Any, Final

from celery import Celery
from celery.signals import worker_process_init

from silo_node.config import Config
from silo_node.errors import SiloError, is_disk_full
from silo_node.rounds.runs import Run
from silo_node.service import broker, logs
from silo_node.service.processes import die_with_parent

MAX_STARTS: Final = 3
"""Starts of one training after which it is given up: it has killed its process each time."""


def make_app(config: Config) -> Celery:
    """The Celery application of one silo: for sending tasks, and in the workers for running them."""
    # No fixups: celery would load Django where its settings happen to stand in the environment.
    app = Celery("consilium-silo", broker=broker.broker_url(config), set_as_current=False, fixups=())
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_serializer="json",
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "global_keyprefix": broker.prefix(config),
            # Longer than any training: a shorter one would run a long training twice at once.
            "visibility_timeout": 7 * 86_400,
            "socket_keepalive": True,
        },
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        task_create_missing_queues=True,
        task_default_queue="control",
    )

    @app.task(name="silo.train", queue="training")
    def train_task(round_id: str) -> None:
        train(config, round_id)

    @app.task(name="silo.preload", queue="training")
    def preload_task() -> None:
        preload(config)

    @app.task(name="silo.scan", queue="control")
    def scan_task() -> None:
        scan(config)

    @app.task(name="silo.erase", queue="control")
    def erase_task() -> None:
        erase(config)

    @app.task(name="silo.tidy", queue="training")
    def tidy_task() -> None:
        tidy(config)

    @app.task(name="silo.fetch", queue="control")
    def fetch_task() -> None:
        fetch(config)

    return app


def send(app: Celery, name: str, *arguments: str) -> None:
    """Queue a task of this module. Raises: what kombu raises when the broker is away."""
    task = app.tasks[f"silo.{name}"]
    task.apply_async(args=list(arguments), queue=task.queue)


@worker_process_init.connect
def _child_started(**_: Any) -> None:
    """In the training child: it ends with its worker, whatever ends that."""
    die_with_parent(os.getppid())
    # Training yields to the messages of the round, which are short and on everybody's critical path.
    os.nice(int(os.environ.get("SILO_NICE", "0")))


def train(config: Config, round_id: str) -> None:
    """Do what the round's job says, keep the result, wake the silo. Done already: only wake it."""
    run = Run(config.runs, round_id)
    job = run.read("job")
    if job is None:
        return  # the round is over
    log = logs.get().bind(study=job["study"], round=round_id)
    if run.result() is None:
        starts = run.begin()
        if starts > MAX_STARTS:
            sentence = (
                f"Training ended its process {MAX_STARTS} times; the node may have too little memory for this plan."
            )
            run.write_result({"ok": False, "code": "TRAINING_KILLED", "sentence": sentence})
        else:
            log.info("training.started", starts=starts, purpose=job["purpose"])
            _train(config, run, job)
        log.info("training.ended", ok=(run.result() or {}).get("ok"))
    broker.push_result(config, round_id)


def _train(config: Config, run: Run, job: dict[str, Any]) -> None:
    try:
        if job["purpose"] == "initial":
            _table(run, job)
        else:
            _learn(config, run, job)
    except SiloError as error:
        run.write_result({"ok": False, "code": error.code, "sentence": error.sentence})
    except Exception as error:  # noqa: BLE001 - whatever a network does, the round must learn that there is no update
        if is_disk_full(error):
            run.write_result({"ok": False, "code": "SILO_DISK_FULL", "sentence": "The silo's disk is full."})
            return
        # The text of a foreign error may quote a file or a header: its kind and its place must do.
        logs.get().error("training.failed", round=run.id, error_at=error)
        run.write_result(
            {
                "ok": False,
                "code": "TRAINING_FAILED",
                "sentence": f"Training failed ({type(error).__name__}); see silo.log.",
            }
        )


def _table(run: Run, job: dict[str, Any]) -> None:
    import time

    from protocol.model_state import table_as_list
    from silo_node.training import trainer

    began = time.perf_counter()
    table = trainer.build_table(job["plan"])
    run.write_result(
        {
            "ok": True,
            "table": table_as_list(table),
            "train_seconds": time.perf_counter() - began,
            "evaluate_seconds": 0.0,
        }
    )


def _learn(config: Config, run: Run, job: dict[str, Any]) -> None:
    from protocol.model_state import ModelState
    from silo_node.rounds.model_store import ModelStore
    from silo_node.training import trainer

    cohort = None
    if job["cohort"]:
        from silo_node.imaging.cohort import Cohort

        cohort = Cohort.load(run.cohort)
    state = ModelState.load(ModelStore(config.models).path(job["model"]))
    seed = trainer.round_seed(job["plan"]["initial"].get("seed", 0), job["study"], job["number"], config.name)
    result = trainer.run(
        job["plan"],
        state,
        cohort,
        folder=config.cache,
        purpose=job["purpose"],
        seed=seed,
        threads=config.settings.training.threads,
        device=config.settings.training.device,
    )
    run.write_result(
        {
            "ok": True,
            "loss": result.loss,
            "auc": result.auc,
            "histograms": result.histograms.tolist(),
            "train_seconds": result.train_seconds,
            "evaluate_seconds": result.evaluate_seconds,
        },
        result.update if job["purpose"] == "train" else None,
    )


def preload(config: Config) -> None:
    """Import what training needs before the first round needs it."""
    from silo_node.training import trainer

    trainer.preload(config.settings.training.threads)


def scan(config: Config) -> None:
    """Bring the index of the DICOM folder up to date; nothing of who opted out is opened."""
    from silo_node import scanning

    try:
        report = scanning.scan(config)
    except SiloError as error:
        logs.get().error("scan.failed", code=error.code, sentence=error.sentence)
        return
    logs.get().info("scan.ended", files=report.files, usable=report.usable, problems=dict(report.problems))


def tidy(config: Config) -> None:
    """Keep caches, copies and logs within their limits; in this queue, so never while a training reads a cache."""
    from silo_node.service import disk

    gone = disk.tidy(config)
    if any(gone.values()):
        logs.get().info("disk.tidied", **gone)


def fetch(config: Config) -> None:
    """Get what the PACS has and this silo has not, and scan it."""
    from silo_node.pacs import fetch as fetching

    try:
        report, error = fetching.fetch(config)
    except SiloError as found:
        logs.get().error("fetch.failed", code=found.code, sentence=found.sentence)
        return
    if error is not None:
        logs.get().warning("fetch.stopped", code=error.code, sentence=report.sentence)
    logs.get().info("fetch.ended", got=report.got, missing=report.missing, refused=report.refused)
    if report.got:
        scan(config)


def erase(config: Config) -> None:
    """Delete the cached pictures of patients who opted out. Sent when no round is open here."""
    from silo_node import scanning

    logs.get().info("erase.ended", pictures=scanning.erase_opted_out(config))
