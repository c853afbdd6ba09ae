"""One Celery worker of the silo, as its own process: `python -m silo_node.service.worker training|control FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from silo_node import tasks
from silo_node.config import Config
from silo_node.service import logs


def main(queue: str, folder: str) -> None:
    """Run until told to stop."""
    config = Config.load(Path(folder))
    logs.configure(config.folder, config.name, config.settings.limits.logs_mb)
    pool = ["--pool=prefork", "--concurrency=1"] if queue == "training" else ["--pool=threads", "--concurrency=2"]
    # Gossip, mingle and events are for many workers that know each other; mingle alone costs a second at the start.
    tasks.make_app(config).worker_main(
        ["worker", "--queues", queue, *pool, "--without-gossip", "--without-mingle", "--without-heartbeat",
         "--loglevel", "WARNING", "--hostname", f"{queue}@{config.name}"]
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:3])
