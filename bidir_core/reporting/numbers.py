"""The numbers of a report: a study's contrasts and attempts, each computed once."""

from __future__ import annotations

from bidir_core.pairing import Metric
from bidir_core.reporting.answers import Attempt
from bidir_core.reporting.arms import CAUSAL, Arm
from bidir_core.reporting.contrast import Contrast
from bidir_core.reporting.contrasts import cell_title, contrast, interaction, interaction_note
from bidir_core.reporting.markdown import escape
from bidir_core.reporting.study import Cell, Study


class Numbers:
    """Computes what the sections of one study say, and remembers it."""

    def __init__(self, study: Study, metric: Metric, margin: float):
        self.study, self.metric, self.margin = study, metric, margin
        self._attempts: dict[Arm, Attempt] = {}
        self._contrasts: dict[tuple[Cell, Cell], Contrast | None] = {}

    def between(self, a: Cell, b: Cell) -> Contrast | None:
        """Cell b minus cell a, or None if either was not run."""
        if (a, b) not in self._contrasts:
            key = f"{cell_title(self.study, b)} minus {cell_title(self.study, a)}"
            self._contrasts[a, b] = contrast(
                key, self.study, a, b, metric=self.metric, margin=self.margin
            )
        return self._contrasts[a, b]

    @property
    def stage1(self) -> Cell:
        return self.study.base, CAUSAL

    def damage(self, regime: str | None = None) -> Contrast | None:
        return self.between(self.stage1, (self.study.base, regime or self.study.regime))

    def attempt(self, arm: Arm) -> Attempt:
        """Everything the answers need of one fine-tuned arm."""
        if arm not in self._attempts:
            self._attempts[arm] = self._attempt(arm)
        return self._attempts[arm]

    def _attempt(self, arm: Arm) -> Attempt:
        study, regime = self.study, self.study.own_regime(arm)
        control = study.control_of(arm) if arm.code == "3B" else None
        found = interaction(study, arm, metric=self.metric)
        named = "the base model" if arm.code == "distill" else control.title if control else "3C"
        return Attempt(
            arm=escape(arm.title),
            control=escape(named),
            regime=escape(regime),
            gain=self.between((study.base, regime), (arm, regime)),
            gap=self.between(self.stage1, (arm, regime)),
            control_gap=self.between((control, CAUSAL), (arm, regime)) if control else None,
            normal=self.between(self.stage1, (arm, CAUSAL)),
            control_normal=self.between((control, CAUSAL), (arm, CAUSAL)) if control else None,
            interaction=found if isinstance(found, str) else found[0],
            interaction_note=interaction_note(study, arm),
            margin=self.margin,
        )

    def contrasts(self, *, leaky: bool = True) -> list[Contrast]:
        """All of them, in reading order."""
        study = self.study
        pairs: list[tuple[Cell, Cell]] = [
            (self.stage1, (study.base, regime))
            for regime in study.bidirectional_regimes(study.base)
        ]
        for arm in study.arms:
            if arm == study.base or (arm.leaky and not leaky):
                continue
            for regime in study.bidirectional_regimes(arm):
                pairs += [((study.base, regime), (arm, regime)), (self.stage1, (arm, regime))]
            pairs.append((self.stage1, (arm, CAUSAL)))
            control = study.control_of(arm) if arm.code == "3B" else None
            if control is not None:
                own = study.own_regime(arm)
                pairs += [
                    ((control, own), (arm, own)),
                    ((control, CAUSAL), (arm, CAUSAL)),
                    ((control, CAUSAL), (arm, own)),
                ]
        found = [self.between(a, b) for a, b in dict.fromkeys(pairs)]
        return [one for one in found if one is not None]
