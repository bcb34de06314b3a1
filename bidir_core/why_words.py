"""What a restoration found, in sentences. Works on the stored result; needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The finding: what happened, then what turns the answer back, in layers, tokens, strength."""
    before, after = result["causal"]["choice"], result["opened"]["choice"]
    out = [_what_happened(result)]
    if before == after:
        out.append(_closest(result))
        return out
    out += [_layers(result), _tokens(result), _strength(result)]
    recorded = result.get("recorded")
    if recorded and recorded["choice"] != after:
        out.append(
            f"The run {recorded['run']} recorded choice {recorded['choice']} where this machine "
            f"computes {after}: the item is a close call, and number formats differ."
        )
    return out


def _what_happened(result: Mapping[str, Any]) -> str:
    before, after, gold = (
        result["causal"]["choice"], result["opened"]["choice"], result["gold"],
    )  # fmt: skip
    regime = result["regime"]
    mark = {choice: " (right)" if choice == gold else " (wrong)" for choice in (before, after)}
    if before == after:
        return f"Under {regime} the answer stays choice {before}{mark[before]}: nothing flips."
    return f"Causal gives choice {before}{mark[before]}, {regime} choice {after}{mark[after]}."


def _closest(result: Mapping[str, Any]) -> str:
    lead = result["causal"]["lead"], result["opened"]["lead"]
    return f"Its lead over the best other choice goes from {lead[0]:+.2f} to {lead[1]:+.2f} nats."


def turned(points: Sequence[Mapping[str, Any]], choice: int) -> list[int]:
    """Which of the points give ``choice``."""
    return [i for i, one in enumerate(points) if one["choice"] == choice]


def ranges(numbers: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _layers(result: Mapping[str, Any]) -> str:
    before, layers, n = result["causal"]["choice"], result["layers"], result["n_layers"]
    single = turned(layers["single"], before)
    first = next(iter(turned(layers["from_first"], before)), n - 1)
    last = n - 1 - next(iter(turned(layers["from_last"][::-1], before)), n - 1)
    if len(single) == 1:
        text = f"Making layer {single[0]} causal again alone turns the answer back."
    elif len(single) == n:
        text = "Making any single layer causal again turns the answer back."
    elif single:
        text = f"Making any one of layers {ranges(single)} causal again turns the answer back."
    else:
        text = "No single layer made causal again turns the answer back."
    if first == n - 1 and last == 0:
        return f"{text} Growing from either end, it takes all {n}."
    return (
        f"{text} Growing from the first layer, {_range(0, first)} suffice; from the last, "
        f"{_range(last, n - 1)}."
    )


def _range(first: int, last: int) -> str:
    return f"layers {first}-{last}" if first < last else f"layer {first}"


def _tokens(result: Mapping[str, Any]) -> str:
    before, tokens = result["causal"]["choice"], result["tokens"]
    back = [one for one in tokens if one["choice"] == before]
    tried = sum(one["looks_ahead"] for one in tokens)
    wide = any(one["first"] != one["last"] for one in tokens)
    unit = "token or span of tokens" if wide else "prompt token"
    if not back:
        return f"No single {unit} made causal again turns it back ({tried} tried)."
    if len(back) <= 3:
        names = [_token(result, one) for one in back]
        named = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
        more = "and no other" if len(back) == 1 else "each alone"
        return f"Of {tried} {unit}s, {named} made causal again turns it back, {more}."
    return f"Of {tried} {unit}s, {len(back)} each turn it back alone, {_token(result, back[0])} among them."


def _token(result: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    first, last = one["first"], one["last"]
    where = f"token {first}" if first == last else f"tokens {first}-{last}"
    text = "".join(result["pieces"][first : last + 1]).strip()
    if not text:
        return where
    shown = text if len(text) <= 24 else text[:23] + "…"
    return f"{where} (“{shown}”)"


def _strength(result: Mapping[str, Any]) -> str:
    found = result["lambda"]
    if found["high"] is None:
        return "At every lambda tried the answer stays."
    if not found["low"]:
        text = f"Even lambda={found['high']:g} flips it"
    else:
        text = f"It flips between lambda={found['low']:.3g} and {found['high']:.3g}"
    back = (
        ", and back again above that, so there is no single threshold" if found["returns"] else ""
    )
    return f"{text}{back}."
