"""The stages, and where their run folders live and how they are named.

runs/<stage_dir>/<YYYYMMDD-HHMMSS>[_<name>]/          UTC; -2, -3 .. within one second
runs/lab/<folder>/points/<slug of the regime>/        each point of a sweep is a run folder
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from bidir_core.common.errors import UserError
from bidir_core.regimes import Regime, parse_regime


@dataclass(frozen=True)
class Stage:
    """``code`` names it in records (an objective for what is trained). ``what`` goes on after a
    colon; ``why`` is a sentence for whoever starts it; ``flag`` is that of ``finetune``."""

    code: str
    name: str
    plain: str
    what: str
    folder: str
    flag: str = ""
    why: str = ""

    @property
    def description(self) -> str:
        return f"{self.what} (`{self.flag}`)" if self.flag and self.code != "3A" else self.what


EVALUATIONS = {
    stage.code: stage
    for stage in (
        Stage(
            "1",
            "Stage 1",
            "vanilla",
            "vanilla baseline: the base model, causal prefill",
            "stage1_vanilla_eval",
            why="The base model as it is: every token sees what precedes it.",
        ),
        Stage(
            "2",
            "Stage 2",
            "bidirectional",
            "ablated baseline: the base model, bidirectional prefill, no fine-tuning",
            "stage2_prefill_bidir_eval",
            why="The base model, untrained, with a prompt whose tokens all see each other. The "
            "choices stay causal.",
        ),
        Stage(
            "4",
            "Stage 4",
            "checkpoint",
            "a fine-tuned checkpoint under bidirectional prefill",
            "stage4_postft_eval",
            why="A fine-tuned checkpoint with a bidirectional prompt. Under the regime causal it is the "
            "non-prefill compare: did fine-tuning change the model without the mask?",
        ),
        Stage(
            "nonprefill",
            "Non-prefill compare",
            "causal checkpoint",
            "base and fine-tuned checkpoint, both causal",
            "nonprefill_compare",
        ),
    )
}

TRAININGS = {
    stage.code: stage
    for stage in (
        Stage(
            "3B",
            "Stage 3B",
            "repair fine-tune",
            "leakage-safe fine-tune: prompt bidirectional, response causal, loss on the response only",
            "stage3_finetune_prefill_bidir",
            "--prompt-bidir-response-causal-train",
            "Prompt bidirectional, response causal, loss on the response only: the leakage-safe "
            "fine-tune.",
        ),
        Stage(
            "3C",
            "Stage 3C",
            "control fine-tune",
            "control: same data, order, steps and seed as 3B, causal mask",
            "stage3c_finetune_causal",
            "--causal-train",
            "The same data, order, steps and seed as 3B, under the causal mask. Without it, a gain "
            "from 3B could be ordinary tuning.",
        ),
        Stage(
            "3A",
            "Stage 3A (leaky)",
            "leaky fine-tune",
            "bidirectional over prompt and response: a warning exhibit, never a result",
            "stage3a_finetune_leaky",
            "--leaky-train",
        ),
        Stage(
            "distill",
            "Distil",
            "distillation",
            "the base model's own causal predictions, taught under the bidirectional regime",
            "stage3d_finetune_distil",
            "--distill",
            "Teaches the bidirectional model its own causal predictions.",
        ),
    )
}

LAB = "lab"
IMPORTED = "imported"
_FIRST, _SECOND, *_AFTER = EVALUATIONS.values()
# All of them by folder, in the order in which a study runs them.
STAGES = {stage.folder: stage for stage in (_FIRST, _SECOND, *TRAININGS.values(), *_AFTER)}
LEAKY_WARNING = (
    "3A is leaky: in its training each response token was visible to the place that had to "
    "predict it. Its numbers are a warning, never a result."
)


# Folders and their names.

STAGE1, STAGE2, STAGE4, NONPREFILL = EVAL_DIRS = tuple(s.folder for s in EVALUATIONS.values())
FINETUNE_DIRS = {code: stage.folder for code, stage in TRAININGS.items()}

COMMITTED_RUNS = Path(__file__).resolve().parents[2] / "runs"

_FOLDER = re.compile(r"\d{8}-\d{6}(-\d+)?(_[A-Za-z0-9][A-Za-z0-9._-]*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def evaluation_dir(regime: Regime | str, checkpoint: object = None) -> str:
    """The folder of an evaluation; ``checkpoint``: anything but None says that a fine-tuned model is
    evaluated.

    Only plain ``causal`` is stage 1 or the non-prefill compare. Every other regime is an ablation
    and goes to stage 2 or 4, ``causal:hide=J`` too: it must never be taken for the baseline.
    """
    if parse_regime(regime).is_causal:
        return STAGE1 if checkpoint is None else NONPREFILL
    return STAGE2 if checkpoint is None else STAGE4


def runs_roots() -> list[Path]:
    """Folders that hold runs; new ones go to the first.

    ``BIDIR_RUNS_DIR`` is a path list (``:`` on Linux); without it runs go beside the committed
    demo runs, which stay visible either way.
    """
    setting = os.environ.get("BIDIR_RUNS_DIR", "")
    roots = [Path(p).expanduser().resolve() for p in setting.split(os.pathsep) if p.strip()]
    if COMMITTED_RUNS not in roots:
        roots.append(COMMITTED_RUNS)
    return list(dict.fromkeys(roots))


def is_read_only() -> bool:
    return os.environ.get("BIDIR_READ_ONLY", "").lower() not in ("", "0", "false", "no")


def refuse_if_read_only(action: str) -> None:
    if is_read_only():
        raise UserError(f"cannot {action}: this is read-only (BIDIR_READ_ONLY is set)")


def check_name(name: str) -> str:
    """Return ``name`` if it can be a run's name, else raise UserError."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"run name '{name[:80]}': use 1-80 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return name


def run_id(folder: Path) -> str:
    """``<stage_dir>/<folder>``, or ``lab/<folder>/points/<slug>``: the same on every machine."""
    parts = folder.parts
    return "/".join(parts[-4:] if parts[-2] == "points" else parts[-2:])


def is_run_folder_name(folder: str) -> bool:
    return _FOLDER.fullmatch(folder) is not None


def split_folder_name(folder: str) -> tuple[str, str | None]:
    """``20260215-093750-2_final`` -> (``20260215-093750-2``, ``final``)."""
    stamp, _, name = folder.partition("_")
    return stamp, name or None


def check_new_run(root: Path | str | None, name: str | None) -> None:
    """Refuse early what :func:`new_run_folder` would refuse; creates nothing."""
    refuse_if_read_only("start a run")
    if name is not None:
        check_name(name)
    folder = Path(root).expanduser().resolve() if root is not None else runs_roots()[0]
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "not a folder" if not existing.is_dir() else "permission denied"
        raise UserError(
            f"cannot write runs to '{folder}' ({reason}); "
            "give a writable folder with --runs-dir or BIDIR_RUNS_DIR"
        )


def new_run_folder(
    root: Path, stage_dir: str, name: str | None = None, *, now: datetime | None = None
) -> Path:
    """Create and return a folder nobody else has; UserError if the runs folder takes no writes."""
    if name is not None:
        check_name(name)
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    stamp = moment.strftime("%Y%m%d-%H%M%S")
    parent = root / stage_dir
    try:
        parent.mkdir(parents=True, exist_ok=True)
        attempt = 0
        while True:
            attempt += 1
            number = "" if attempt == 1 else f"-{attempt}"
            folder = parent / (stamp + number + (f"_{name}" if name else ""))
            # The stamp alone must be new too, so that a number tells two runs of a second apart.
            taken = any(split_folder_name(p.name)[0] == stamp + number for p in parent.iterdir())
            if not taken:
                with suppress(FileExistsError):
                    folder.mkdir()
                    return folder
    except OSError as error:
        raise UserError(
            f"cannot write runs to '{root}' ({error.strerror or error}); "
            "give a writable folder with --runs-dir or BIDIR_RUNS_DIR"
        ) from error


# Whoever writes a run holds its lock, whatever the clocks, hosts and process ids say.


def run_lock(folder: Path) -> filelock.BaseFileLock:
    """The lock of a run folder; ``filelock.Timeout`` on acquiring it while somebody holds it."""
    # Readers hold the lock for an instant to test it: then a short wait is enough.
    wait = 0 if is_locked(folder) else 0.5
    return filelock.FileLock(folder / ".lock", timeout=wait, poll_interval=0.01)


def is_locked(folder: Path) -> bool:
    """Whether somebody writes the run now. Creates nothing."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
