"""Jobs: command lines that run detached, one after another on each device.

A job is exactly what the terminal takes (``python -m bidir_core eval ...``) and a folder:

    <first runs root>/.jobs/<id>/job.json   what, where, state, process; replaced atomically
                                 log.txt    everything the command printed
                                 runs.txt   the run folders it writes, one a line, newest last
    <first runs root>/.jobs/worker-<device>.json    the worker, while there is one

:func:`submit` queues a job and starts the device's worker (:mod:`bidir_core.jobs.worker`) if none
lives. The worker is a small detached process that runs the queue and ends when it is empty;
nothing here needs a server, and everything is read back from files. Only the worker sends signals
to a job, once each, so that a checkpoint being written is never interrupted a second time.
"""

from bidir_core.jobs.job import (
    GRACE_SECONDS,
    Job,
    JobState,
    child_environment,
    command_text,
    jobs_folder,
    queue_device,
    worker_file,
    worker_lives,
)
from bidir_core.jobs.queue import (
    COMMANDS,
    cancel,
    find_job,
    forget,
    go_on,
    idempotency_key,
    list_jobs,
    log_tail,
    resume,
    save,
    stalled,
    submit,
)
