"""The report's sentences: what its figures show, said with this run's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from mobileprune.report.evidence import Evidence, Point

_NOISE = 0.05  # gaps in latency below this are not worth a word


def share(value: float) -> str:
    """A fraction as whole percent."""
    return f"{100 * value:.0f} %"


def frontier(evidence: Evidence) -> list[str]:
    """What the frontier is, and what more budget would buy."""
    text = [
        f"The best accuracy that is predicted of a result for each limit on {evidence.limit_name}, with "
        f"its 80 % interval, at a confidence of {share(evidence.confidence)} that the limit is kept. "
        "Probes carry their accuracy after a short fine-tuning, base and result after a full one, "
        "with their standard errors.",
    ]
    if evidence.result.accuracy is not None and evidence.expected[1]:
        mean, std = (100 * value for value in evidence.expected)
        found = 100 * evidence.result.accuracy
        text.append(f"Of the result {mean:.1f} ± {std:.1f} % were expected from the others; {found:.1f} % were found.")
    return text


def slices(evidence: Evidence) -> list[str]:
    """What the three planes are and how far to believe them."""
    error = 100 * evidence.accuracy_error
    return [
        f"F(depth, width, resolution), fitted to the probes by the form “{evidence.accuracy_form}”, on the planes "
        "through the chosen scale (star), as after the same training everywhere. Circles are probes, filled with the "
        "accuracy that was measured: where their colour differs from what is around them the surface is off, or their "
        "training was shorter or longer than most. Small ones lie beside the plane.",
        f"A probe that is left out of the fit is missed by {error:.1f} points on average.",
    ]


def untrained(evidence: Evidence) -> list[str]:
    """How far each dimension goes before the network is much worse."""
    reach = ", ".join(f"{line.axis} to {share(line.reach)}" for line in evidence.untrained)
    return [
        "The base cut along one dimension alone, its norms estimated anew, nothing trained: the loss that this adds on "
        "training images. Where a line is steep the next step is dear; training brings back a part of it, and the "
        "probes say how much. Dotted: the chosen scale.",
        f"Of the shares measured, less than one nat is added by {reach}.",
    ]


def latency(evidence: Evidence) -> list[str]:
    """How good the latency surrogate is on this device."""
    missed = [p for p in evidence.measured if p.latency_ms > p.predicted_high_ms or p.latency_ms < p.predicted_low_ms]
    return [
        f"Each point is a scale whose latency was {evidence.origin}; on the line the surrogate "
        f"(“{evidence.latency_form}”) is exact. A scale left out of the fit is missed by "
        f"{100 * evidence.latency_error:.1f} %. "
        f"{len(evidence.measured) - len(missed)} of {len(evidence.measured)} lie within the surrogate's 80 % interval.",
    ]


def macs(evidence: Evidence) -> list[str]:
    """Which networks are slower than their MACs say, and what keeps them slow."""
    base = evidence.base
    pruned = [p for p in evidence.measured if p.macs < base.macs]
    slow = [p for p in pruned if _time(p, base) > _work(p, base) + _NOISE]
    text = [
        "A network below the line is faster than its multiply-accumulates say, one above it slower. "
        f"Of {len(pruned)} pruned networks {len(slow)} lie above it by more than 5 points."
    ]
    if pair := _paradox(evidence.measured):
        fewer, more = pair
        text.append(
            f"Fewer FLOPs, slower: {fewer.label} does {_exactly(_work(fewer, base))} of the base's "
            f"multiply-accumulates in {fewer.latency_ms:.3g} ms, while {more.label} does "
            f"{_exactly(_work(more, base))} in {more.latency_ms:.3g} ms." + _reason(fewer, more)
        )
    elif slow:
        worst = max(slow, key=lambda p: _time(p, base) - _work(p, base))
        text.append(
            f"The widest gap: {worst.label} does {share(_work(worst, base))} of the multiply-accumulates and still "
            f"takes {share(_time(worst, base))} of the time." + _reason(worst, base)
        )
    if evidence.halving:
        parts = ", ".join(f"{share(left)} by {axis} ({value:.2g})" for axis, value, left in evidence.halving)
        text.append(
            f"What is left of the latency where one dimension alone halves the MACs, by the surrogate: {parts}."
        )
    return text


def _time(point: Point, base: Point) -> float:
    return point.latency_ms / base.latency_ms


def _work(point: Point, base: Point) -> float:
    return point.macs / base.macs


def _exactly(value: float) -> str:
    """A fraction as percent of two digits or more, by which two that are close are told apart."""
    return f"{100 * value:.2g} %" if value < 0.1 else share(value)


def _paradox(points: Sequence[Point]) -> tuple[Point, Point] | None:
    """The two networks of which the one with clearly fewer MACs is slower by most, beyond both intervals."""
    found = [
        (a.latency_ms / b.latency_ms, a, b)
        for a in points
        for b in points
        if a.macs < (1 - _NOISE) * b.macs and a.low_ms > b.high_ms * (1 + _NOISE)
    ]
    if not found:
        return None
    _, fewer, more = max(found, key=lambda item: item[0])
    return fewer, more


def _reason(slow: Point, fast: Point) -> str:
    """What the slow one has more of, of what was counted."""
    more = [
        f"{100 * slow.work[name]:.0f} % of the base's {what} instead of {100 * fast.work[name]:.0f} %"
        for name, what in (("activations", "activations written"), ("layers", "layers"))
        if name in slow.work and name in fast.work and slow.work[name] > fast.work[name] + 0.005
    ]
    if more:
        return " It has " + " and ".join(more) + ": memory traffic and the start of each layer do not shrink with MACs."
    return (
        " Neither its activations nor its layers explain it: its layers use the processor less well "
        "(narrow channels fill vector registers and caches badly)."
    )


def blocks(evidence: Evidence) -> list[str]:
    """How many parts are gone, and what the rest keeps."""
    gone = [b for b in evidence.blocks if b.after is None]
    before, after = (sum(v) for v in zip(*((b.before, b.after or 0) for b in evidence.blocks), strict=True))
    which = f"{len(gone)} of {len(evidence.blocks)} parts were removed ({', '.join(b.name for b in gone[:6])}" + (
        ", …)" if len(gone) > 6 else ")"
    )
    kept = f"{share(after / before)} of the multiply-accumulates are left."
    return [f"{which if gone else 'No part was removed whole'}; {kept}"]


def curves(evidence: Evidence) -> list[str]:
    """What was trained."""
    probes = sum(c.name not in ("base", "result") for c in evidence.curves)
    thin = f" Thin lines: {probes} probes." if probes else ""
    text = [f"Mean training loss per epoch (with label smoothing and, where it was on, distillation).{thin}"]
    if any(a is not None for c in evidence.curves for a in c.accuracy):
        text.append(
            "Accuracy is that on the training images, augmented as they were, while weights still changed; diamonds "
            "are the trained networks on the validation split."
        )
    return text


def prices(evidence: Evidence) -> list[str]:
    """The shadow prices at the continuous optimum, and what the next networks along the frontier cost and bring."""
    text = [f"{price[0].upper()}{price[1:]}." for price in evidence.prices]
    here = next((c for c in evidence.frontier if c.scale == evidence.result.scale), None)
    if here is None:
        return text
    for better, word in ((True, "next better"), (False, "next cheaper")):
        ordered = evidence.frontier if better else tuple(reversed(evidence.frontier))
        other = next(
            (c for c in ordered if (c.limit > here.limit) == better and (c.accuracy[0] > here.accuracy[0]) == better
             and c.scale != here.scale),
            None,
        )  # fmt: skip
        if other is not None:
            change = 100 * (other.accuracy[0] - here.accuracy[0])
            text.append(
                f"The {word} network ({other.scale}) takes a {evidence.limit_name} limit of {other.limit:.3g} "
                f"{evidence.limit_unit} and {'brings' if better else 'costs'} {abs(change):.1f} points, predicted."
            )
    return text
