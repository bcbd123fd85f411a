"""Resolution: the input sizes that a network takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from mobileprune.pruning.cost import Trace, trace
from mobileprune.pruning.layers import Inputs, axes_of, like, outputs, resized, size_of

SMALL_SIDE = 64  # inputs up to this side move in small steps
SMALL_STEP, LARGE_STEP = 4, 16
SMALLEST_RESOLUTION = 0.25  # sizes below this share of the base's side are never tried

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


def find_sizes(
    model: nn.Module, example_input: Inputs, whole: Trace, step: int | None, every: bool, notes: list[str]
) -> tuple[dict[Size, Trace], Inputs, bool]:
    """What ``model`` does at each size it takes, a small input, and whether some layers run in training only.

    whole: its trace on ``example_input``. step: of the sizes in pixels. every: whether all sizes are wanted or the
    base's alone. Sizes it does not take go into ``notes``. The small input is the smallest of at least 64 px: which
    channels are coupled does not depend on the size.
    """
    base = size_of(example_input)
    sizes = candidate_sizes(base, step or default_step(base), SMALLEST_RESOLUTION)
    rarely = any(axes_of(module) and name not in whole.shapes for name, module in model.named_modules())
    traces = {base: whole}
    if every:
        traces, refusal = working_sizes(model, example_input, sizes, traces)
        refusals = [refusal]
        if rarely:
            traces, refusal = training_sizes(model, example_input, traces)
            refusals.append(refusal)
        notes += [f"resolution: {refusal}" for refusal in refusals if refusal is not None]
    large = (size for size in sizes if min(size) >= SMALL_SIDE and (size in traces or not every))
    small = next((s for s in large if s in traces or s in working_sizes(model, example_input, [s], traces)[0]), base)
    return traces, resized(example_input, small), rarely


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
