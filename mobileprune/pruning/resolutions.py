"""Resolution: the input sizes that a network takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from mobileprune.pruning.cost import Trace, trace
from mobileprune.pruning.layers import Inputs, like, outputs, resized

SMALL_SIDE = 64  # inputs up to this side move in small steps
SMALL_STEP, LARGE_STEP = 4, 16

Size = tuple[int, int]


def default_step(base: Size) -> int:
    """4 px for inputs of up to 64 px, 16 px above: about 1/14 to 1/8 of the usual sides (32, 224)."""
    return SMALL_STEP if max(base) <= SMALL_SIDE else LARGE_STEP


def candidate_sizes(base: Size, step: int, smallest: float) -> list[Size]:
    """(h, w) ascending, ending at ``base``: heights are multiples of ``step``, widths follow in the same ratio."""
    height, width = base
    heights = [h for h in range(step, height, step) if h / height >= smallest]
    sizes = [(h, max(step, round(width * h / height / step) * step)) for h in heights]
    return [*sizes, base]


def working_sizes(
    model: nn.Module, example_input: Inputs, sizes: list[Size], known: Mapping[Size, Trace]
) -> tuple[dict[Size, Trace], str | None]:
    """The traces of ``model`` at those of the ``sizes`` that it takes, and why it refuses the others.

    known: the trace at the base's size. A size is taken when the network runs at it, calls the same layers as there,
    and gives outputs of the same shape.
    """
    traces = dict(known)
    base = next(iter(known.values()))
    refused: dict[Size, str] = {}
    for size in reversed([size for size in sizes if size not in known]):
        try:
            found = trace(model, resized(example_input, size))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            refused[size] = f"it fails ({lines[0][:150]})"
            continue
        if found.layers != base.layers:
            refused[size] = "it takes another path"
        elif found.output_shapes != base.output_shapes:
            refused[size] = "its output changes shape"
        else:
            traces[size] = found
    if not refused:
        return traces, None
    first = max(refused)
    listed = ", ".join(f"{h}x{w}" for h, w in sorted(refused))
    return traces, f"not at {listed}: at {first[0]}x{first[1]} {refused[first]}"


def training_sizes(
    model: nn.Module, example_input: Inputs, traces: Mapping[Size, Trace]
) -> tuple[dict[Size, Trace], str | None]:
    """Those of the sizes at which ``model`` also runs in training mode, and why not the others; the base size stays.

    For networks with layers that only run in training, such as an auxiliary head: they fit fewer sizes.
    """
    kept: dict[Size, Trace] = {}
    refused: dict[Size, str] = {}
    for size, found in traces.items():
        try:
            with torch.random.fork_rng(devices=[]):  # dropout draws from the global state
                pair = like(resized(example_input, size), 2, lambda shape: torch.full(shape, 0.1))
                outputs(copy.deepcopy(model).train(), pair)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            refused[size] = lines[0][:150]
            if not kept:
                kept[size] = found  # the base, which the caller chose
                break
            continue
        kept[size] = found
    if not refused:
        return kept, None
    first = max(refused)
    listed = ", ".join(f"{h}x{w}" for h, w in sorted(set(traces) - set(kept)))
    where = f"not at {listed}: in training" if first not in kept else f"only {first[0]}x{first[1]}: in training"
    return kept, f"{where} it fails ({refused[first]})"
