"""What a study's differences allow us to say. Report, paper, app and scripts only phrase it.

:class:`Findings` forms the differences of a study, each once (:mod:`.study` selects its runs,
:mod:`.contrasts` pairs them, :mod:`.verdict` reads one interval); :class:`Repair` is what they say
together of one fine-tuned arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from bidir_core.analyse import stats
from bidir_core.analyse.contrasts import Contrast, contrast, interaction
from bidir_core.analyse.pairing import Metric
from bidir_core.analyse.study import CAUSAL, Arm, Cell, Study
from bidir_core.analyse.verdict import Judgement, judge

# What the differences of one fine-tuned arm say together.

Outcome = Literal[
    "nothing to repair",  # stage 2 is not below stage 1
    "no gain",  # training does not raise accuracy under the regime
    "gain undecided",
    "repaired",  # the interaction is above 0, and stage 1 is reached
    "partly repaired",  # the same, and stage 1 is not reached
    "repaired, level undecided",
    "no control",  # a gain, of which nobody knows whether it is ordinary tuning
    "repair undecided",
    "tuning",  # the control gains as much
]


@dataclass(frozen=True)
class Repair:
    """What is known of one fine-tuned arm; a None was not run.

    ``damage``: the untrained model under the regime minus stage 1. ``gain``: the arm minus the
    untrained model, both under the regime. ``gap``: the arm under the regime minus stage 1.
    ``control_gap``: it under the regime minus the causal control, causal: the cost of the mask at
    equal training. ``normal``: it minus stage 1, both causal. ``control_normal``: it minus the
    control, both causal. ``interaction``, or in ``missing`` why there is none; ``note``: how many
    of the seeds it is from, if not from all.
    """

    arm: str
    control: str
    regime: str
    damage: Contrast | None
    gain: Contrast | None
    gap: Contrast | None
    control_gap: Contrast | None
    normal: Contrast | None
    control_normal: Contrast | None
    interaction: Judgement | None
    interaction_by_seed: tuple[float, ...] = ()
    missing: str = ""
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        """Nothing is called repair unless the interaction with the control is above 0."""
        if self.damage is not None and self.damage.verdict in ("equivalent", "better"):
            return "nothing to repair"
        gain = self.gain.verdict if self.gain is not None else "undecided"
        if gain != "better":
            return "gain undecided" if gain == "undecided" else "no gain"
        if self.interaction is None:
            return "no control"
        if self.interaction.verdict == "undecided":
            return "repair undecided"
        if self.interaction.verdict != "better":
            return "tuning"
        gap = self.gap.verdict if self.gap is not None else "undecided"
        if gap == "undecided":
            return "repaired, level undecided"
        return "partly repaired" if gap == "worse" else "repaired"


class Findings:
    """Computes what can be said of one study, and remembers it."""

    def __init__(self, study: Study, metric: Metric = "acc", margin: float = stats.MARGIN):
        self.study, self.metric, self.margin = study, metric, margin
        # Cell b minus cell a, or None if either was not run.
        self.between = cache(partial(contrast, study, metric=metric, margin=margin))
        # An arm's interaction with its control, or what is missing for it.
        self.interaction = cache(partial(interaction, study, metric=metric))
        # Everything that the answers need of one fine-tuned arm.
        self.repair = cache(self._repair)

    @property
    def stage1(self) -> Cell:
        return self.study.base, CAUSAL

    def damage(self, regime: str | None = None) -> Contrast | None:
        return self.between(self.stage1, (self.study.base, regime or self.study.regime))

    def judged(self, estimate: stats.Estimate, n_seeds: int = 1) -> Judgement:
        return judge(estimate, margin=self.margin, n_seeds=n_seeds)

    def _repair(self, arm: Arm) -> Repair:
        study, regime = self.study, self.study.own_regime(arm)
        control = study.control_of(arm) if arm.code == "3B" else None
        result = self.interaction(arm)
        missing = result if isinstance(result, str) else ""
        effect, note = (None, "") if isinstance(result, str) else (result.effect, result.note)
        control_name = control.title if control else "3C"
        if arm.code == "distill":
            control_name = "the base model"
        return Repair(
            arm=arm.title,
            control=control_name,
            regime=regime,
            damage=self.damage(regime),
            gain=self.between((study.base, regime), (arm, regime)),
            gap=self.between(self.stage1, (arm, regime)),
            control_gap=self.between((control, CAUSAL), (arm, regime)) if control else None,
            normal=self.between(self.stage1, (arm, CAUSAL)),
            control_normal=self.between((control, CAUSAL), (arm, CAUSAL)) if control else None,
            interaction=self.judged(effect.estimate, len(effect.per_seed)) if effect else None,
            interaction_by_seed=effect.per_seed if effect else (),
            missing=missing,
            note=note,
        )

    def contrasts(self, *, leaky: bool = True) -> list[Contrast]:
        """All of them, in reading order."""
        study = self.study
        pairs: list[tuple[Cell, Cell]] = [
            (self.stage1, (study.base, regime)) for regime in study.regimes(study.base)
        ]
        for arm in study.arms:
            if arm == study.base or (arm.leaky and not leaky):
                continue
            for regime in study.regimes(arm):
                pairs += [((study.base, regime), (arm, regime)), (self.stage1, (arm, regime))]
            pairs.append((self.stage1, (arm, CAUSAL)))
            control = study.control_of(arm) if arm.code == "3B" else None
            if control is not None:
                own_regime = study.own_regime(arm)
                pairs += [
                    ((control, own_regime), (arm, own_regime)),
                    ((control, CAUSAL), (arm, CAUSAL)),
                    ((control, CAUSAL), (arm, own_regime)),
                ]
        contrasts = [self.between(a, b) for a, b in dict.fromkeys(pairs)]
        return [contrast for contrast in contrasts if contrast is not None]
