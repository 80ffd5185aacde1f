"""What happens during a run as JSON, one object per line, for programs that watch it."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from types import TracebackType
from typing import Any

LOG_JSON = "Progress, warnings and errors on stderr as JSON, one object per line."
"""Help of the option."""


class JsonLog(logging.Handler):
    """Events, warnings and log records of this package on stderr. Use it as a context.

    Every line has ``time`` (seconds since 1970) and ``event``: ``step``, ``progress``, ``log`` or ``error``.
    """

    def event(self, name: str, **fields: Any) -> None:
        """Write one line; numbers that JSON does not have become null."""
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields.items()}
        print(json.dumps({"time": round(time.time(), 3), "event": name, **plain}, default=str), file=sys.stderr, flush=True)

    def emit(self, record: logging.LogRecord) -> None:
        self.event("log", level=record.levelname, logger=record.name, message=record.getMessage().strip())

    def __enter__(self) -> JsonLog:
        for name in ("ppl_llm", "py.warnings"):
            logger = logging.getLogger(name)
            logger.addHandler(self)
            logger.propagate = False
        logging.captureWarnings(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        logging.captureWarnings(False)
        for name in ("ppl_llm", "py.warnings"):
            logger = logging.getLogger(name)
            logger.removeHandler(self)
            logger.propagate = True
