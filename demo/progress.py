"""One line a finished round, and a bar where the terminal can show one."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from demo.summary import seconds


class Progress:
    """Shows a study's report again and again; prints each round once, when it is over."""

    def __init__(self, console: Console, rounds: int) -> None:
        columns = (
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("rounds", total=rounds)
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def show(self, report: dict[str, Any]) -> None:
        for row in report["rounds"]:
            if row["stage"] == "finished" and row["round"] not in self._seen:
                self._seen.add(row["round"])
                self._bar.console.print(self._words(row), markup=False)
            elif row["stage"] == "failed" and row["round"] not in self._seen:
                self._seen.add(row["round"])
                self._bar.console.print(f"  round {row['number']} failed: {row['failure']['sentence']}", markup=False)
        running = [row for row in report["rounds"] if row["stage"] not in ("finished", "failed")]
        stage = f"round {running[-1]['number']}: {running[-1]['stage']}" if running else report["state"]
        self._bar.update(
            self._task,
            completed=sum(row["purpose"] == "train" for row in report["rounds"] if row["stage"] == "finished"),
            description=stage,
        )

    @staticmethod
    def _words(row: dict[str, Any]) -> str:
        if row["purpose"] == "initial":
            return f"  first model agreed on ({seconds(row):.1f} s)"
        name = f"round {row['number']}" if row["purpose"] == "train" else "last model scored"
        auc = "" if row["auc_mean"] is None else f", mean AUC of the model that came in {row['auc_mean']:.3f}"
        return f"  {name}: {len(row['members'] or [])} hospitals, {seconds(row):.1f} s{auc}"
