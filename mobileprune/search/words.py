"""The answer to a problem given as tables, in lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_answer(answer: Mapping[str, Any]) -> list[str]:
    """What ``solve_tables`` found, for people: the choice, what it should reach, what limits are worth, what to try."""
    accuracy, unit = answer["accuracy"], " %" if answer["accuracy_unit"] == "percent" else ""
    reach = f"80 % interval {accuracy['low']:.4g} to {accuracy['high']:.4g}"
    lines = [
        f"scale      {_written(answer['scale'])}",
        f"accuracy   {accuracy['mean']:.4g}{unit} predicted, {reach}",
    ]
    for name, device in answer["devices"].items():
        if device["measured"] is not None:
            value = f"{device['measured']:.4g} ms measured"
        else:
            value = f"{device['mean']:.4g} ms predicted, 80 % interval {device['low']:.4g} to {device['high']:.4g}"
        lines.append(f"{name:<10} {value}; limit {device['limit']:.4g} ms")
    form = answer["surrogate"]
    lines.append(f"surrogate  {form['form']}, left-out error {form['cv_error']:.3g}{unit}")
    if answer["continuous"] is not None:
        where = _written(answer["continuous"]["scale"])
        lines.append(f"continuous {where}, KKT residual {answer['kkt_residual']:.1e}")
    lines += [f"           {price}" for price in answer["prices"]]
    if answer["base_suffices"]:
        lines.append("           the full network keeps the budget: nothing need be pruned")
    following = answer["next_probe"]
    if following is not None:
        gain = following["expected_gain"]
        where = _written({k: v for k, v in following.items() if k != "expected_gain"})
        lines.append(f"next probe {where}, expected to gain {gain:.2g}{unit}")
    else:
        lines.append("next probe none is expected to improve the choice")
    return lines


def _written(scale: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scale.items())
