"""Replay the search on published grids (ImageNet top-1 and latency over width x resolution): the answers are known.

Each strategy sees only the accuracies it asks for and must choose, for 40 budgets per grid, the scale of best top-1
that keeps the latency budget. Regret is what its choice lacks to the best feasible scale, in points of top-1.

    python tools/replay_search.py ../shared/data/published/phone_latency.csv
    python tools/replay_search.py --boards        # single-board computers and servers too

Strategies: ``search`` (base, three probes around the budget, then the probe of largest expected gain), ``one design``
(one set of probes for all budgets), ``random`` probes, ``width only`` at full resolution, ``resolution only`` at full
width, ``nominal cost`` (d w^2 r^2 in place of latency), ``fitted latency`` (``search``, and latency known at 8 scales).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mobileprune.scale import BASE, Lattice, Scale
from mobileprune.search.accuracy import AccuracySurrogate, fit_accuracy
from mobileprune.search.latency import fit_latency
from mobileprune.search.probes import initial_probes, rate_probes
from mobileprune.search.solver import DEFAULT_CONFIDENCE as CONFIDENCE
from mobileprune.search.solver import Constraint, Field, counted_constraint, latency_constraint, survey

DEFAULT = Path(__file__).resolve().parent.parent / "../shared/data/published/phone_latency.csv"
PROBES = (5, 6, 8, 10)
BUDGETS = 40
LATENCIES = 8

# What the source is known to have mistyped: (family, precision, width, resolution, as printed) -> top-1.
SLIPS = {("mobilenet_v1", "uint8", 0.75, 128, 55.9): 59.8}


@dataclass(frozen=True)
class Grid:
    """A full table of one network on one device: accuracy (a fraction) and latency (ms) of each scale."""

    name: str
    group: str
    lattice: Lattice
    accuracy: dict[Scale, float]
    latency: dict[Scale, float]

    @property
    def scales(self) -> list[Scale]:
        return list(self.lattice)

    def budgets(self) -> list[float]:
        """40 budgets, evenly spaced in ratio from the fastest scale to just below the slowest."""
        low, high = min(self.latency.values()), max(self.latency.values())
        return [float(b) for b in np.geomspace(low, high, BUDGETS + 1)[:-1] * 1.0001]

    def best(self, budget: float) -> float:
        return max(a for s, a in self.accuracy.items() if self.latency[s] <= budget)


def load(path: Path) -> list[Grid]:
    """All full width x resolution tables of four values or more per axis in the published measurements."""
    cells: dict[tuple[str, ...], dict[tuple[float, int], tuple[float, float]]] = defaultdict(dict)
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if not (row["top1"] and row["latency_ms"] and row["width"] and row["resolution"]):
                continue
            width, pixels, top1 = float(row["width"]), int(row["resolution"]), float(row["top1"])
            wide_outlier = row["family"] == "mobilenet_v2" and width > 1.0  # at 224 px only: not part of a grid
            if "performance.md" in row["source"] or wide_outlier:
                continue
            key = (row["family"], row["precision"], row["device"], row["backend"], row["threads"])
            top1 = SLIPS.get((row["family"], row["precision"], width, pixels, top1), top1)
            cells[key].setdefault((width, pixels), (top1 / 100.0, float(row["latency_ms"])))
    return [_grid(key, found) for key, found in cells.items() if _full(found)]


def _full(found: dict[tuple[float, int], tuple[float, float]]) -> bool:
    widths, pixels = {w for w, _ in found}, {p for _, p in found}
    return len(widths) >= 4 and len(pixels) >= 4 and len(found) == len(widths) * len(pixels)


def _grid(key: tuple[str, ...], found: dict[tuple[float, int], tuple[float, float]]) -> Grid:
    family, precision, device, backend, threads = key
    widths, pixels = sorted({w for w, _ in found}), sorted({p for _, p in found})
    scale = {(w, p): Scale(1.0, w / widths[-1], p / pixels[-1]) for w, p in found}
    lattice = Lattice((1.0,), tuple(w / widths[-1] for w in widths), tuple(p / pixels[-1] for p in pixels))
    name = " ".join(filter(None, (family, precision, device, backend, f"{threads} threads" if threads else "")))
    group = "phones" if device.startswith("Pixel") else "boards"
    accuracy, latency = ({scale[c]: v[i] for c, v in found.items()} for i in (0, 1))
    return Grid(name, group, lattice, accuracy, latency)


@dataclass
class Tally:
    """Outcomes of one strategy at one number of probes: regrets (points) and latencies over budget (shares)."""

    regrets: list[float]
    excess: list[float]
    unreachable: int = 0

    def add(self, grid: Grid, budget: float, choice: Scale | None) -> None:
        if choice is None:
            self.unreachable += 1
            return
        self.regrets.append(max(100.0 * (grid.best(budget) - grid.accuracy[choice]), 0.0))
        self.excess.append(grid.latency[choice] / budget - 1.0)

    def row(self) -> dict[str, float | int]:
        regrets, excess = np.array(self.regrets), np.array(self.excess)
        return {
            "budgets": len(regrets),
            "unreachable": self.unreachable,
            "mean_regret": round(float(regrets.mean()), 4),
            "max_regret": round(float(regrets.max()), 2),
            "within_0.25": round(float((regrets <= 0.25 + 1e-9).mean()), 4),
            "missed": round(float((excess > 1e-9).mean()), 4),
            "missed_over_5%": round(float((excess > 0.05).mean()), 4),
        }


Results = dict[tuple[str, int], Tally]


def fit(grid: Grid, probes: Sequence[Scale], form: str) -> AccuracySurrogate:
    """Published accuracies are taken as they are: the regret is counted in them."""
    return fit_accuracy(probes, [grid.accuracy[s] for s in probes], [0.0] * len(probes), form)


def first_kept(field: Field, confidence: float) -> Scale | None:
    kept = [int(i) for i in field.ranking() if field.joint[i] >= confidence - 1e-12]
    return field.scales[kept[0]] if kept else None


def choose(surrogate: AccuracySurrogate, grid: Grid, constraint: Constraint) -> Scale | None:
    return first_kept(survey(surrogate, [constraint], grid.scales), 0.5)


def search(
    grid: Grid, scales: Sequence[Scale], constraint: Constraint, confidence: float, form: str, most: int = max(PROBES)
) -> dict[int, Scale | None]:
    """The search for one budget among ``scales``; the choice after each number of probes (the base is one of them)."""

    def cost(asked: Sequence[Scale]) -> np.ndarray:
        return np.asarray(constraint.predict(asked)[0])

    share = constraint.limit / float(cost([BASE])[0])
    probes = [BASE, *initial_probes(grid.lattice, 3, cost, share)]
    chosen: dict[int, Scale | None] = {}
    while True:
        surrogate = fit(grid, probes, form)
        field = survey(surrogate, [constraint], scales)
        chosen[len(probes)] = first_kept(field, confidence)
        best = rate_probes(surrogate, field, probes, confidence) if len(probes) < most else None
        if best is None:  # all probes are spent, or every feasible scale is known
            last = chosen[len(probes)]
            return {n: chosen.get(n, last) for n in PROBES}
        probes.append(best[0])


def replay(grid: Grid, form: str, seeds: int) -> Results:
    """All strategies on one grid."""
    results: Results = defaultdict(lambda: Tally([], []))
    for budget in grid.budgets():
        exact = counted_constraint("latency", budget, "ms", grid.latency.__getitem__)
        for n, scale in search(grid, grid.scales, exact, 0.5, form).items():
            results["search", n].add(grid, budget, scale)
        for name, allowed in (("width only", 2), ("resolution only", 1)):
            line = [s for s in grid.scales if s.as_tuple()[allowed] == 1.0 and grid.latency[s] <= budget]
            results[name, 0].add(grid, budget, max(line, key=grid.accuracy.__getitem__, default=None))
    designs = {n: [BASE, *initial_probes(grid.lattice, n - 1)] for n in PROBES}
    rng = np.random.default_rng(0)
    rest = [s for s in grid.scales if s != BASE]
    for n in PROBES:
        _fixed(grid, designs[n], form, results, "one design", n)
        for _ in range(seeds):
            _fixed(grid, [BASE, *(rest[i] for i in rng.permutation(len(rest))[: n - 1])], form, results, "random", n)
    _nominal(grid, designs[6], form, results)
    _fitted(grid, form, results)
    return dict(results)


def _fixed(grid: Grid, probes: Sequence[Scale], form: str, results: Results, name: str, n: int) -> None:
    surrogate = None if _blind(probes) else fit(grid, probes, form)
    for budget in grid.budgets():
        exact = counted_constraint("latency", budget, "ms", grid.latency.__getitem__)
        if surrogate is None:  # the probes vary one axis only: the best of them is all one can choose
            inside = [s for s in probes if grid.latency[s] <= budget]
            results[name, n].add(grid, budget, max(inside, key=grid.accuracy.__getitem__, default=None))
        else:
            results[name, n].add(grid, budget, choose(surrogate, grid, exact))


def _blind(probes: Sequence[Scale]) -> bool:
    return any(len({s.as_tuple()[axis] for s in probes}) == 1 for axis in (1, 2))


def _nominal(grid: Grid, probes: Sequence[Scale], form: str, results: Results) -> None:
    """The paper's rule: the budget as a share of the base's latency is taken as a share of d w^2 r^2."""
    surrogate = fit(grid, probes, form)
    for budget in grid.budgets():
        rule = counted_constraint("cost", budget / grid.latency[BASE], "", lambda s: s.nominal_cost)
        results["nominal cost", 6].add(grid, budget, choose(surrogate, grid, rule))


def _fitted(grid: Grid, form: str, results: Results) -> None:
    """Latency measured at 8 designed scales and fitted; accuracy searched with 6 probes."""
    sampled = [BASE, *initial_probes(grid.lattice, LATENCIES - 1)]
    surrogate = fit_latency(sampled, [grid.latency[s] for s in sampled], [0.0] * len(sampled))
    for budget in grid.budgets():
        constraint = latency_constraint("latency", budget, surrogate)
        chosen = search(grid, grid.scales, constraint, CONFIDENCE, form, most=6)
        results["fitted latency", 6].add(grid, budget, chosen[6])


def pooled(parts: Sequence[Results]) -> Results:
    out: Results = defaultdict(lambda: Tally([], []))
    for part in parts:
        for key, tally in part.items():
            out[key].regrets += tally.regrets
            out[key].excess += tally.excess
            out[key].unreachable += tally.unreachable
    return dict(out)


def verdicts(by_grid: dict[str, Results], everything: Results) -> list[tuple[str, bool, str]]:
    """The targets at 6 probes: (what, met, the worst figure)."""
    at = {name: r["search", 6].row() for name, r in by_grid.items()}
    whole = everything["search", 6].row()
    worst = max(float(r["mean_regret"]) for r in at.values())
    largest = max(float(r["max_regret"]) for r in at.values())
    rules = ("width only", "resolution only", "nominal cost")
    lost = [
        f"{name}: {rule}"
        for name, r in by_grid.items()
        for rule in rules
        if not beaten(r["search", 6], r[rule, 6 if rule == "nominal cost" else 0])
    ]
    missed = float(everything["fitted latency", 6].row()["missed_over_5%"])
    return [
        ("mean regret on every grid <= 0.05", worst <= 0.05, f"{worst:.3f}"),
        ("max regret on every grid <= 1.0", largest <= 1.0, f"{largest:.2f}"),
        ("mean regret over all <= 0.03", float(whole["mean_regret"]) <= 0.03, f"{whole['mean_regret']}"),
        ("max regret over all <= 0.5", float(whole["max_regret"]) <= 0.5, f"{whole['max_regret']}"),
        ("95% of budgets within 0.25", float(whole["within_0.25"]) >= 0.95, f"{whole['within_0.25']}"),
        ("every rule of thumb beaten on every grid", not lost, "; ".join(lost) or "all"),
        (f"fitted latency, confidence {CONFIDENCE}: <= 2% missed by over 5%", missed <= 0.02, f"{missed}"),
    ]


def beaten(ours: Tally, rule: Tally) -> bool:
    """Less regret at no more missed budgets; or no more regret where the rule misses budgets or cannot answer."""
    a, b = ours.row(), rule.row()
    worse = float(b["missed"]) > float(a["missed"]) or int(b["unreachable"]) > int(a["unreachable"])
    return float(a["mean_regret"]) < float(b["mean_regret"]) or worse


def write_csv(path: Path, rows: list[dict[str, object]], command: str) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as stream:
        stream.write(f"# {command}\n")
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def draw(rows: list[dict[str, object]]) -> str:
    """Mean regret of every strategy over all grids of a group, as an SVG of bars on a logarithmic axis."""
    pooled_rows = [r for r in rows if r["grid"] == "all" and r["group"] == "phones" and r["probes"] in (0, 6)]
    ordered = sorted(pooled_rows, key=lambda r: float(str(r["mean_regret"])))
    least, left, width, line = 0.001, 150, 360, 24
    tall = line * len(ordered) + 78
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 250}" height="{tall}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-size="14">Mean regret over {BUDGETS} budgets a grid, published phone grids, '
        "6 probes (points of top-1)</text>",
    ]
    for exponent in (-3, -2, -1, 0, 1):
        x = left + width * (exponent + 3) / 4
        out.append(f'<line x1="{x}" x2="{x}" y1="34" y2="{tall - 34}" stroke="#ddd"/>')
        out.append(f'<text x="{x}" y="{tall - 18}" text-anchor="middle">{10.0**exponent:g}</text>')
    for i, r in enumerate(ordered):
        y, regret = 40 + i * line, float(str(r["mean_regret"]))
        reach = width * (np.log10(max(regret, least)) + 3) / 4
        colour = "#1b7f5c" if r["strategy"] == "search" else "#8a94a6"
        note = f"{regret:.3f}; budgets missed {float(str(r['missed'])):.0%}; cannot answer {r['unreachable']}"
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{r["strategy"]}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{reach + 2:.1f}" height="{line - 8}" fill="{colour}"/>')
        out.append(f'<text x="{left + reach + 8:.1f}" y="{y + 13}">{note}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("table", nargs="?", type=Path, default=DEFAULT, help="the published measurements (CSV)")
    parser.add_argument("--boards", action="store_true", help="boards and servers too, not only phones")
    parser.add_argument("--surrogate", default="auto", help="auto, monotone, power-law-gp or polynomial")
    parser.add_argument("--seeds", type=int, default=10, help="random designs per grid")
    parser.add_argument("--out", type=Path, default=Path("results/replay_search.csv"))
    args = parser.parse_args()
    if not args.table.exists():
        print(f"{args.table} is not there: give the path of the published measurements", file=sys.stderr)
        return 2
    grids = [g for g in load(args.table) if args.boards or g.group == "phones"]
    by_grid: dict[str, Results] = {}
    rows: list[dict[str, object]] = []
    for grid in grids:
        by_grid[grid.name] = replay(grid, args.surrogate, args.seeds)
        for (strategy, n), tally in sorted(by_grid[grid.name].items()):
            rows.append({"group": grid.group, "grid": grid.name, "strategy": strategy, "probes": n, **tally.row()})
        shown = {n: by_grid[grid.name]["search", n].row() for n in PROBES}
        print(grid.name, *(f"{n}: {r['mean_regret']:.3f}/{r['max_regret']:.2f}" for n, r in shown.items()), sep="  ")
    for group in dict.fromkeys(g.group for g in grids):
        parts = {g.name: by_grid[g.name] for g in grids if g.group == group}
        whole = pooled(list(parts.values()))
        rows += [
            {"group": group, "grid": "all", "strategy": s, "probes": n, **t.row()}
            for (s, n), t in sorted(whole.items())
        ]
        print(f"\n{group}: {len(parts)} grids, {BUDGETS} budgets each; regret in points of top-1")
        for (strategy, n), tally in sorted(whole.items()):
            r = tally.row()
            print(
                f"  {strategy:16} {n or '':>2}  mean {r['mean_regret']:.3f}  max {r['max_regret']:.2f}  within 0.25: "
                f"{r['within_0.25']:.3f}  missed {r['missed']:.3f}  by over 5%: {r['missed_over_5%']:.3f}  "
                f"cannot answer {r['unreachable']}"
            )
        for what, met, figure in verdicts(parts, whole):
            print(f"  {'met ' if met else 'MISSED'} {what}: {figure}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    flags = (" --boards" if args.boards else "") + (
        f" --surrogate {args.surrogate}" if args.surrogate != "auto" else ""
    )
    write_csv(args.out, rows, f"python tools/replay_search.py{flags}")
    args.out.with_suffix(".svg").write_text(draw(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
