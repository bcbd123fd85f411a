"""The channel groups that width may cut: traced, able to shrink, and proven; and in words what is left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mobileprune.errors import MobilepruneError
from mobileprune.pruning.couplings import ChannelGroup, find_couplings, shared_axes
from mobileprune.pruning.filters import can_shrink, unit_of
from mobileprune.pruning.layers import Axis, Inputs, axes_of, is_depthwise
from mobileprune.pruning.proof import prove


@dataclass(frozen=True)
class Subject:
    """A network under analysis.

    model: it, in any mode. shadow: its stand-in in eval mode that knows shapes alone (see ``shadow_of``). near: a small
    input of the shadow. rarely: whether some layers run in training only.
    """

    model: nn.Module
    shadow: nn.Module
    near: Inputs
    rarely: bool


@dataclass(frozen=True)
class Steps:
    """channel_step: what channel counts become multiples of, see ``Anatomy.of``; least: no group falls below."""

    channel_step: int | Mapping[str, int]
    least: int


@dataclass(frozen=True)
class ProvenGroups:
    """The groups that can be cut, the channel step of each, and notes on what is left alone."""

    groups: tuple[ChannelGroup, ...]
    units: tuple[int, ...]
    notes: list[str]


def proven_groups(subject: Subject, steps: Steps, through: Sequence[str] = ()) -> ProvenGroups:
    """Trace the groups, keep those that can shrink, and prove them.

    through: modules that may be taken out, so that what they give must be cut like what they get.
    """
    model = subject.model
    notes: list[str] = []
    traced = find_couplings(subject.shadow, subject.near, through, training=subject.rarely)
    notes += [f"width: {_listed(layers)} stay: {why}" for why, layers in traced.held.items() if layers]
    shared = dict.fromkeys(axis.layer for axis in shared_axes(model))
    if shared:
        notes.append(f"width: {_listed(list(shared))} share a weight: their channels stay")
    units = {id(group): unit_of(group, model, steps.channel_step) for group in traced.groups}
    candidates = [group for group in traced.groups if can_shrink(group, units[id(group)], steps.least)]
    try:
        proven, refuted = prove(model, candidates, subject.near, rarely=subject.rarely)
    except (RuntimeError, ValueError, MobilepruneError) as error:
        notes.append(f"width: the couplings cannot be tested ({type(error).__name__}: {error})")
        return ProvenGroups((), (), notes)
    kinds: dict[str, list[tuple[ChannelGroup, str]]] = {}
    for group, reason in refuted:
        kinds.setdefault(reason.partition(" (")[0], []).append((group, reason))
    for failures in kinds.values():
        layers = list(dict.fromkeys(layer for group, _ in failures for layer in _made_by(model, group)))
        channels = sum(group.channels for group, _ in failures)
        notes.append(f"width: {channels} channels of {_listed(layers)} stay: {failures[0][1]}")
    if not proven and not candidates:
        notes.append("width: no layer has channels to spare")
    return ProvenGroups(tuple(proven), tuple(units[id(group)] for group in proven), notes)


def _listed(layers: Sequence[str]) -> str:
    return ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")


def _made_by(model: nn.Module, group: ChannelGroup) -> list[str]:
    """The layers that make the channels of ``group``, for a person to read."""
    outs = [axis.layer for axis in group.members if axis.side == "out"]
    layers = {path: module for path, module in model.named_modules() if path in outs}
    made = [path for path in outs if "in" in axes_of(layers[path]) and not is_depthwise(layers[path])]
    return made or outs or [group.name]


def rows_left(group: ChannelGroup, kept: Mapping[Axis, Sequence[int]]) -> NDArray[np.int64]:
    """The channels of ``group`` that a network with the base positions ``kept`` still has."""
    for axis, members in group.members.items():
        if axis in kept:
            return np.flatnonzero(np.isin(members[:, 0], np.asarray(kept[axis])))
    return np.arange(group.count)
