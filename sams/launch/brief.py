"""Short lines about jobs on the terminal of `snakemake`; Snakemake's own log stays complete in its file."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from sams.launch.run import EVENTS, View, last_lines
from sams.launch.workflow import stopped

OTHER_LINES = 5.0
"""Seconds between two looks at running jobs."""
KEPT = ("Complete log", "Nothing to be done")
"""Beginnings of Snakemake's own messages that are shown."""
REPEATS = ("RuleException:\nCalledProcessError", "Exiting because a job execution failed")
"""Beginnings of messages about a job whose failure is reported by its event."""


def shorten_log(workflow: Any) -> None:
    """Replace Snakemake's terminal output by `BriefHandler`, where the profile asks for it (`quiet: [host]`).

    `--verbose`, `--dry-run`, `--quiet` and other profiles keep Snakemake's own.
    """
    settings = workflow.output_settings
    asked = [choice.name for choice in settings.quiet or ()] == ["HOST"]
    if not asked or settings.verbose or settings.dryrun or settings.printshellcmds or EVENTS in os.environ:
        return
    logger = logging.getLogger("snakemake.logging")
    for own in [handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"]:
        logger.removeHandler(own)
        logger.addHandler(BriefHandler(own.formatter))


class BriefHandler(logging.Handler):
    """Prints a line when a job ends or fails, and from time to time one about each job that is running."""

    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.view = View()
        threading.Thread(target=self._watch, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Print what is worth a line of a message; after a request to stop, nothing: jobs end as requested."""
        if stopped():
            return
        failed = len(self.view.failed)
        event = vars(record) | {"event": str(getattr(record, "event", None))}
        for line in self.view.take(event):
            if not line.startswith("start"):
                self._print(line)
        if event["event"] == "run_info":
            self._print(f"{self.view.total} jobs to run; Snakemake's own log is in .snakemake/log")
        if len(self.view.failed) > failed:
            self._print(last_lines(self.view.failed[-1].log))
        if event["event"] != "None" and record.levelno < logging.WARNING:
            return
        text = self.format(record)
        repeated = event["event"] == "job_error" or text.startswith(REPEATS)
        if text.startswith(KEPT) or (record.levelno >= logging.WARNING and not repeated):
            self._print(text)

    def _watch(self) -> None:
        """Print lines about running jobs until the process ends."""
        pause = threading.Event()
        while not pause.wait(OTHER_LINES):
            for line in [] if stopped() else list(self.view.lines()):
                self._print(line)

    @staticmethod
    def _print(text: str) -> None:
        if text:
            print(text, file=sys.stderr, flush=True)
