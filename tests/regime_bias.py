"""What a regime adds to attention scores, as one dense matrix: what models and masks are held to."""

import math
from dataclasses import replace

import numpy as np

from bidir_core.regimes import Regime, visible


def score_bias(
    regime: Regime,
    n_prefix: int,
    n_total: int,
    *,
    layer: int | None = None,
    window: int | None = None,
) -> np.ndarray:
    """float64 ``[query, key]``: 0, log(lambda) or -inf; arguments as ``visibility`` takes them."""
    here = regime.at_layer(layer) if layer is not None else replace(regime, layers=None)
    query, key = np.arange(n_total)[:, None], np.arange(n_total)[None, :]
    allowed, ahead = visible(
        here,
        query,
        key,
        query_prefix=query < n_prefix,
        key_prefix=key < n_prefix,
        same_item=np.ones((n_total, n_total), dtype=bool),
        descends=key <= query,
        n_prefix=n_prefix,
    )
    if window is not None:
        allowed = allowed & (abs(query - key) < window)
    return np.where(allowed & ahead, math.log(here.lam), np.where(allowed, 0.0, -np.inf))
