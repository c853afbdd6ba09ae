"""What can stand against a round inside the hospital, sorted by who can put it right.

DataError              (a SiloError) code + sentence; no patient, no header value and no exact count is in them
├── TableError         a CSV file that hospital IT has to correct: file and line are named       exit code 2
├── ScanError          the data folder or its index cannot be used                               exit code 2
├── CohortError        too few patients for this study: the round goes on without this hospital  exit code 3
├── PixelError         one file cannot be decoded; it becomes a row with a reason, the others go on
├── StorageError       there is no room for what has to be kept
└── TrainingError      (silo_node.training.errors) the plan is refused, or training failed       exit code 3
"""

from __future__ import annotations

from silo_node.errors import SiloError


class DataError(SiloError):
    """Something about this hospital's data or training; the sentence may leave the hospital."""

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        # A training child hands its error to its parent.
        return type(self), (self.code, self.sentence)


class TableError(DataError):
    """labels.csv or the opt-out list is not what it must be. Codes `LABELS_*` and `OPT_OUT_*`."""

    exit_code = 2


class ScanError(DataError):
    """The data folder or its index cannot be used. Codes `DATA_FOLDER_*`, `INDEX_*`, `DISK_FULL` (exit code 1, as DiskFull)."""

    @property
    def exit_code(self) -> int:
        return 1 if self.code == "DISK_FULL" else 2


class CohortError(DataError):
    """Nobody, or too few, may take part. Codes `COHORT_EMPTY`, `COHORT_TOO_SMALL`."""

    exit_code = 3


class PixelError(DataError):
    """One file's pixels cannot be used. Codes `UNREADABLE`, `FILE_CHANGED`, `PIXELS_*`."""


class StorageError(DataError):
    """There is no room for decoded pictures. Code `DISK_FULL`."""
