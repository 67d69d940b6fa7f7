"""Snakemake logger plugin `sams`: writes the events of jobs to the file that SAMS_EVENTS names, one JSON object
per line.

`sams run` puts this folder on the Python path of Snakemake, which finds plugins by their name.
"""

import json
import os
from logging import LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase

FIELDS: dict[str, tuple[str, ...]] = {
    "run_info": ("stats",),
    "job_info": ("jobid", "rule_name", "wildcards", "output", "log", "shellcmd"),
    "job_finished": ("job_id",),
    "job_error": ("jobid",),
}


class LogHandler(LogHandlerBase):
    """Writes events; all else stays with Snakemake's own handlers."""

    def __post_init__(self) -> None:
        self._stream = open(os.environ["SAMS_EVENTS"], "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def emit(self, record: LogRecord) -> None:
        event = str(getattr(record, "event", None))
        if event not in FIELDS:
            return
        values: dict[str, Any] = {name: getattr(record, name, None) for name in FIELDS[event]}
        self._stream.write(json.dumps({"event": event, **values}, default=str) + "\n")

    @property
    def writes_to_stream(self) -> bool:
        return False

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return True

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False
