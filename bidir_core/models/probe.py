"""Does the model really do what the regime says? Asked of the loaded model, not of the mask.

A bidirectional switch that silently stays causal, or is ignored by one layer, or leaks answers
into prompts, still gives plausible numbers. So before a stage records anything, a few short sequences
go through the very model, regime, precision and attention implementation that the stage uses,
and what flows, by layer and token, is compared with what the regime allows. A fault stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bidir_core.common.errors import UserError
from bidir_core.common.progress import phase
from bidir_core.models.attention import without_plans
from bidir_core.models.loading import LoadedModel
from bidir_core.models.probe_checks import CHECKS, measure
from bidir_core.regimes import Regime, parse_regime

# The probe's sequences are short. So under attention ``split`` the packed row's near and far items
# stand for long prefixes, and their neighbour, whose prefix has 2 tokens, for a short one.
SPLIT_FROM = 3
RUNS = "model_runs"  # the check that fails where the other ones could not be asked


@dataclass(frozen=True)
class Check:
    """One question asked of the model; ``detail`` is a sentence for people."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class ProbeReport:
    """The outcome of :func:`run_probe`, written to a run's ``probe.json``."""

    model: str
    fingerprint: str
    regime: str
    dtype: str
    implementation: str
    device: str
    n_layers: int
    seconds: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> str:
        """The failed checks in one line, empty if there are none."""
        return "; ".join(f"{c.name}: {c.detail}" for c in self.checks if not c.passed)

    def require(self, otherwise: str) -> None:
        """Raise UserError unless every check passed; ``otherwise`` ends its sentence."""
        for check in self.checks:
            if check.name == RUNS and not check.passed:
                raise UserError(
                    f"the mask probe failed: {self.model} cannot be probed ({check.detail}), "
                    f"{otherwise}"
                )
        if not self.passed:
            failed = ", ".join(check.name for check in self.checks if not check.passed)
            raise UserError(
                f"the mask probe failed ({failed}): {self.model} does not attend as "
                f"'{self.regime}' says, {otherwise}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``probe.json``."""
        data = asdict(self)
        checks = [asdict(check) for check in self.checks]
        return {"schema": 1, "passed": self.passed, **data, "checks": checks}


def run_probe(loaded: LoadedModel, regime: Regime | str, *, seed: int = 0) -> ProbeReport:
    """Run every check on a loaded model. A model that fails to run has failed; nothing is raised.

    ``seed`` chooses where in the probe's text the tokens start, and the perturbations.
    """
    regime = parse_regime(regime)
    phase("Checking the mask (probe)")
    start = time.perf_counter()
    with (
        torch.no_grad(),
        _evaluation_mode(loaded.model),
        loaded.handle.splitting_from(SPLIT_FROM),
        without_plans(loaded.device),
    ):
        checks = tuple(_checks(loaded, regime, seed))
    return ProbeReport(
        model=loaded.name,
        fingerprint=loaded.fingerprint,
        regime=str(regime),
        dtype=loaded.dtype,
        implementation=loaded.implementation,
        device=str(loaded.device),
        n_layers=loaded.n_layers,
        seconds=round(time.perf_counter() - start, 3),
        checks=checks,
    )


class Prober:
    """Probes one loaded model, each regime once: for what asks for many texts, not for one run."""

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        self._reports: dict[Regime, ProbeReport] = {}

    def require(self, regime: Regime | str) -> ProbeReport:
        """The report on a regime. Raises UserError, now and later, if it is not in force."""
        regime = parse_regime(regime)
        if regime not in self._reports:
            self._reports[regime] = run_probe(self._loaded, regime)
        report = self._reports[regime]
        report.require("so its text would mean nothing; the command 'probe' says more")
        return report


def _checks(loaded: LoadedModel, regime: Regime, seed: int) -> Iterator[Check]:
    try:
        measured = measure(loaded, regime, seed)
    except Exception as error:
        yield Check(RUNS, False, _in_one_line(error))
        return
    for name, ask in CHECKS.items():
        try:
            yield Check(name, *ask(measured))
        except Exception as error:
            yield Check(name, False, _in_one_line(error))


def _in_one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, UserError):
        return message
    return f"stopped with {type(error).__name__}: {message}"


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
