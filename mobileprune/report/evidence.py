"""What a report shows, as plain values: nothing here draws, measures or reads a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mobileprune.scale import Scale


@dataclass(frozen=True)
class Point:
    """One network: validation accuracy (a fraction) with its standard error, latency in ms with its 95 % interval.

    ``predicted_ms`` is the surrogate's latency with the bounds that hold it with probability 0.8. ``work``: counted
    work as shares of the base's (``macs``, ``activations``, ``layers``).
    """

    scale: Scale
    accuracy: float | None = None
    std: float = 0.0
    latency_ms: float = 0.0
    low_ms: float = 0.0
    high_ms: float = 0.0
    predicted_ms: float = 0.0
    predicted_low_ms: float = 0.0
    predicted_high_ms: float = 0.0
    macs: float = 0.0
    work: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return str(self.scale)


@dataclass(frozen=True)
class Choice:
    """The best scale for one limit on the first budget's quantity, and what is expected of it (80 % intervals)."""

    limit: float
    scale: Scale
    accuracy: tuple[float, float, float]  # mean, low, high; fractions
    latency_ms: tuple[float, float, float]
    macs: float
    params: float
    memory: float
    size_bytes: float
    budgets: tuple[str, ...]  # that ask for it


@dataclass(frozen=True)
class Slice:
    """Accuracy F over two axes of the scale, the third held at the chosen scale's.

    x, y: the axes' names. xs (n,), ys (m,): shares of the base. values (m, n): fractions.
    """

    x: str
    y: str
    held: str
    at: float
    xs: Sequence[float]
    ys: Sequence[float]
    values: Sequence[Sequence[float]]
    probes: Sequence[Point]
    on_slice: Sequence[bool]


@dataclass(frozen=True)
class Block:
    """MACs of a part of the network per image, before and after; ``after`` is None where it was removed."""

    name: str
    before: int
    after: int | None


@dataclass(frozen=True)
class Curve:
    """One training: per finished epoch the mean loss and, where labels are not mixed, the accuracy (a fraction) on the
    training images as they were augmented; after the last one the accuracy on the validation split."""

    name: str
    epochs: Sequence[int]
    loss: Sequence[float]
    accuracy: Sequence[float | None]
    validation: float | None = None


@dataclass(frozen=True)
class Untrained:
    """What one dimension alone adds to the loss (nats, on training images) before any training.

    shares (n,): of the base, ascending, the last 1. added (n,): nats. chosen: the share of the chosen scale.
    """

    axis: str
    shares: Sequence[float]
    added: Sequence[float]
    chosen: float

    @property
    def reach(self) -> float:
        """The smallest measured share that adds less than a nat; 1 where there is none."""
        return min(share for share, added in zip(self.shares, self.added, strict=True) if added < 1.0)


@dataclass(frozen=True)
class Evidence:
    """Everything that the figures and the sentences beside them are made of."""

    base: Point
    result: Point
    probes: Sequence[Point]
    measured: Sequence[Point]
    frontier: Sequence[Choice]
    slices: Sequence[Slice]
    blocks: Sequence[Block]
    curves: Sequence[Curve]
    untrained: Sequence[Untrained]
    limit_name: str
    limit_unit: str
    limit: float  # what the run was asked to keep
    origin: str  # of the latencies: "measured" on the device, or "predicted" from its profile
    latency_form: str
    latency_error: float  # relative, on samples left out
    accuracy_form: str
    accuracy_error: float  # a fraction, on probes left out
    halving: Sequence[tuple[str, float, float]]  # axis, its value, share of the latency left where it halves the MACs
    prices: Sequence[str]
    confidence: float
    expected: tuple[float, float] = (0.0, 0.0)  # accuracy of the result before it was trained, and its error
