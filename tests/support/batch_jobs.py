"""Work for the processes of `codec.batch`, which import it by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from mricodec.codec.integrations import batch


def deadly(job: batch.Job) -> batch.Outcome:
    """Kills its process where the source is named so; else as usual, but not at once."""
    if "deadly" in job.source:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return batch.run_job(job)


def raising(job: batch.Job) -> batch.Outcome:
    raise RuntimeError(f"no luck with {job.source}")


def lasting(job: batch.Job) -> batch.Outcome:
    """Leaves a trace at its beginning and takes a while."""
    Path(job.out_dir, f"{job.source}.begun.{os.getpid()}").touch()
    time.sleep(0.5)
    return batch.run_job(job)
