"""Fit the shipped device profiles to published latencies, and say how wrong they are.

    python tools/fit_device_profile.py ../shared/data/published/phone_latency.csv

Builds the networks of the table, counts their work (kept in results/published_networks.csv), fits each device, backend
and number of threads, leaves out one family of networks after the other to find the error, and writes the profiles of
device_profiles/catalog/ and the table results/device_profiles.csv. Nothing of the published table is copied.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from count_published import RESULTS, count_all
from fit_latency import Settings, Works, errors_of, fit, left_out, like, per_kind, single
from published_rows import MACHINES, Row, read

from device_profiles.latency_model import LatencyModel
from device_profiles.profile import CATALOG, DeviceProfile, write_profile

COMMAND = "python tools/fit_device_profile.py ../shared/data/published/phone_latency.csv"
REACH = 2  # a profile may be asked for networks and inputs so many times smaller or larger than the fitted ones
Key = tuple[str, str, int]  # device, backend, threads


@dataclass(frozen=True)
class Shape:
    """Rows of another device with the same kernels, which lend their ratios of coefficients to one with few rows.

    tight, noise: see `Settings.general`; std: how far the few rows may move a ratio; their_noise: what they are off by.
    """

    key: Key
    words: str
    tight: float
    noise: float
    std: float
    their_noise: float


# MLPerf's latencies are averages over a minute and more; the tables of 2018 to 2020 are rounded, of unknown spread, and
# of kernels that the model describes less well.
_OWN = {"tight": 0.5, "noise": 0.15}
_GRAVITON = Shape(
    ("AWS cloud instance m7g.2xlarge (graviton)", "TFLite vmaster (xnnpack) cpu", 1),
    "one thread of a Graviton 3 with TFLite's XNNPACK",
    tight=1.0,
    noise=0.03,
    std=0.2,
    their_noise=0.05,
)
_PIXEL_3 = Shape(("Pixel 3", "tflite cpu", 4), "four threads of a Pixel 3", **_OWN, std=0.2, their_noise=0.15)


@dataclass(frozen=True)
class Plan:
    """A profile to fit. device, backend: as in the table; threads: each a model, the first the profile's own."""

    name: str
    title: str
    soc: str
    cores: int
    device: str
    backend: str
    threads: tuple[int, ...]
    runtime: str
    remark: str = ""
    without: tuple[str, ...] = ()
    shape: Shape | None = None


def _xnnpack(name: str, title: str, soc: str, cores: int, device: str, threads: tuple[int, ...]) -> Plan:
    remark = (
        "Its rows are whole milliseconds, all at 224 pixels. Dense k x k convolutions behind the stem were in neither "
        "device's rows and are refused."
    )
    runtime = "XNNPACK end2end_bench (2020)"
    return Plan(name, title, soc, cores, device, "xnnpack end2end_bench", threads, runtime, remark, shape=_GRAVITON)


_TFLITE_OLD = "Default TFLite of that time ran its own kernels, not XNNPACK: LiteRT of today is faster."
PLANS = (
    _xnnpack("pixel-1", "Google Pixel 1", "Snapdragon 821", 4, "Pixel 1", (1, 2)),
    _xnnpack("pixel-2", "Google Pixel 2", "Snapdragon 835", 8, "Pixel 2", (1, 4)),
    _xnnpack("pixel-3a", "Google Pixel 3a", "Snapdragon 670", 8, "Pixel 3a", (1, 2)),
    Plan(
        "pixel-2-tflite",
        "Google Pixel 2, TFLite without XNNPACK",
        "Snapdragon 835",
        8,
        "Pixel 2",
        "tflite cpu",
        (1,),
        "TFLite CPU (2018-2019)",
        f"{_TFLITE_OLD} It is here because it knows dense k x k convolutions. MobileNetV3 is left out: its rows are "
        "from a newer runtime.",
        ("mobilenet_v3",),
    ),
    Plan(
        "pixel-3",
        "Google Pixel 3",
        "Snapdragon 845",
        8,
        "Pixel 3",
        "tflite cpu",
        (4,),
        "TFLite CPU, Android 10 (2019)",
        f"{_TFLITE_OLD} One thread is not offered: the published rows for it are MobileNetV3 alone.",
    ),
    Plan(
        "pixel-4",
        "Google Pixel 4",
        "Snapdragon 855",
        8,
        "Pixel 4",
        "tflite cpu",
        (4,),
        "TFLite CPU, Android 10 (2020)",
        f"{_TFLITE_OLD} Its own ten rows, of two documents, have 385 MMAC or more: below that its shape is "
        "the Pixel 3's.",
        shape=_PIXEL_3,
    ),
    _xnnpack("raspberry-pi-2", "Raspberry Pi 2", "BCM2836", 4, "Raspberry Pi 2 (BCM2836)", (4,)),
    _xnnpack("raspberry-pi-3", "Raspberry Pi 3+", "BCM2837B0", 4, "Raspberry Pi 3+ (BCM2837B0)", (4,)),
    _xnnpack("raspberry-pi-4", "Raspberry Pi 4", "BCM2711", 4, "Raspberry Pi 4 (BCM2711)", (4,)),
)
# Fitted for the table of errors, but not shipped, and why.
TRIED = (
    (
        Plan("", "", "", 4, "Pixel 1", "tflite cpu", (1,), ""),
        "three documents whose runtimes differ by up to a quarter, one family in the largest",
    ),
    (Plan("", "", "", 4, "Raspberry Pi 4", "TFLite v2.4.1 (ruy) cpu", (4,), ""), "a runtime that LiteRT has left"),
)


@dataclass(frozen=True)
class Fitted:
    """Coefficients of one model; own: errors of the device's rows, each family left out; shape: of the rows that the
    ratios come from, the same way; fitted: errors of the device's rows in the fit itself, which may be larger."""

    rows: tuple[Row, ...]
    shape_rows: tuple[Row, ...]
    coefficients: np.ndarray
    own: dict[Row, float]
    shape: dict[Row, float]
    fitted: dict[Row, float]

    @cached_property
    def typical(self) -> float:
        return max(_mean(self.own), _mean(self.shape))

    @cached_property
    def guaranteed(self) -> float:
        return max(abs(error) for error in (*self.own.values(), *self.shape.values(), *self.fitted.values()))


def _mean(errors: dict[Row, float]) -> float:
    return float(np.mean(np.abs(list(errors.values())))) if errors else 0.0


def mean_over_families(errors: dict[Row, float]) -> float:
    families = sorted({row.family for row in errors})
    return float(np.mean([_mean({row: e for row, e in errors.items() if row.family == one}) for one in families]))


def fit_plan(plan: Plan, threads: int, rows: dict[Key, list[Row]], works: Works) -> Fitted:
    own = [row for row in rows[plan.device, plan.backend, threads] if row.family not in plan.without]
    shape = plan.shape
    if shape is None:
        settings = Settings.general(threads, **_OWN)
        coefficients = fit(own, works, settings)
        errors = left_out(own, works, lambda rest, family: fit(rest, works, settings))
        return Fitted(tuple(own), (), coefficients, errors, {}, errors_of(own, works, coefficients))
    others = rows[shape.key]
    theirs = Settings.general(shape.key[2], tight=shape.tight, noise=shape.noise)
    more_threads = threads / shape.key[2]

    def transferred(rest: Sequence[Row], family: str) -> np.ndarray:
        """Neither the device's rows nor those the ratios come from know the family."""
        ratios = fit([row for row in others if row.family != family], works, theirs)
        return fit(rest, works, like(ratios, more_threads, std=shape.std, noise=shape.their_noise))

    coefficients = transferred(own, "")
    return Fitted(
        tuple(own),
        tuple(others),
        coefficients,
        left_out(own, works, transferred),
        left_out(others, works, lambda rest, family: fit(rest, works, theirs)),
        errors_of(own, works, coefficients),
    )


def model_of(plan: Plan, threads: int, found: Fitted, works: Works) -> LatencyModel:
    used = [*found.rows, *found.shape_rows]
    known = [works[row.network] for row in used]
    macs, elements = per_kind(found.coefficients, known)
    return LatencyModel(
        threads=threads,
        runtime=plan.runtime,
        ms_per_operator=single(found.coefficients, ("operators", "all")),
        ms_per_mb_weights=single(found.coefficients, ("weights", "all")),
        ms_per_gmac=macs,
        ms_per_million_activations=elements,
        typical_error=_up(found.typical),
        guaranteed_error=_up(found.guaranteed),
        rows=len(used),
        families=tuple(sorted({row.family for row in used})),
        macs=_reach([work.macs for work in known]),
        input_elements=_reach([work.input_elements for work in known]),
        sources=tuple(sorted({row.source for row in used})),
    )


def _up(share: float) -> float:
    return float(np.ceil(share * 1000) / 1000)


def _reach(sizes: list[int]) -> tuple[int, int]:
    return min(sizes) // REACH, max(sizes) * REACH


def provenance(plan: Plan, found: dict[int, Fitted]) -> str:
    why = next(one.why for one in MACHINES if (one.device, one.backend) == (plan.device, plan.backend))
    parts = [f"Predicted, not measured here: fitted to published float32 CPU latencies by {COMMAND}. Threads: {why}."]
    for threads, one in found.items():
        families = len({row.family for row in one.rows})
        worst = max(one.own, key=lambda row: abs(one.own[row]))
        parts.append(
            f"{threads} thread{'s' * (threads > 1)}: {len(one.rows)} rows of {families} families; each family left "
            f"out in turn was off by {_mean(one.own):.1%} (mean over rows; over families "
            f"{mean_over_families(one.own):.1%}), at worst {one.own[worst]:+.1%} ({worst.network})."
        )
    if plan.shape:
        errors = next(iter(found.values())).shape
        parts.append(
            f"The ratios of the coefficients lean on {plan.shape.words} ({len(errors)} rows, off by "
            f"{_mean(errors):.1%}, at worst {max(map(abs, errors.values())):.1%}, in the same way), the scale is from "
            "this device's own rows. The stated errors are the larger ones of both."
        )
    parts.append(
        f"Networks and inputs down to 1/{REACH} of the smallest and up to {REACH} times the largest fitted one are "
        "accepted. Runtimes of other years differ by 1.3 to 2.2 times on the same phone: shares of the base's latency "
        "hold better than milliseconds. Channel step 8: XNNPACK's kernels take 8 channels at a time; not measured here."
    )
    return "\n".join([*parts, plan.remark] if plan.remark else parts)


def profile_of(plan: Plan, found: dict[int, Fitted], works: Works) -> DeviceProfile:
    return DeviceProfile(
        name=plan.name,
        title=f"{plan.title} (predicted)",
        kind="predicted",
        runtime="litert",
        format="tflite",
        precision="float32",
        threads=plan.threads[0],
        channel_step=8,
        provenance=provenance(plan, found),
        soc=plan.soc,
        cores=plan.cores,
        latency=tuple(model_of(plan, threads, one, works) for threads, one in found.items()),
    )


def best_pixel(found: dict[str, dict[int, Fitted]]) -> tuple[Plan, str]:
    """The phone with the smallest stated error among those of the newest runtime, and the sentences that say so."""
    newest = [plan for plan in PLANS if plan.name.startswith("pixel") and plan.shape is _GRAVITON]

    def error(plan: Plan) -> tuple[float, float]:
        one = found[plan.name][plan.threads[0]]
        return one.typical, _mean(one.own)

    best = min(newest, key=error)
    others = ", ".join(f"{plan.name} {error(plan)[0]:.1%} / {error(plan)[1]:.1%}" for plan in newest)
    return best, (
        f"This is the profile {best.name}: of the phones whose rows are for the newest runtime, XNNPACK, on one thread "
        f"its error is the smallest (stated / on its own rows: {others})."
    )


def write_table(found: list[tuple[str, str, int, Fitted, str]], path: Path) -> None:
    columns = "profile,device,backend,threads,rows,families,lofo_mean,lofo_mean_over_families,lofo_p90,lofo_max"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {COMMAND}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns.split(","), "ratios_from_rows", "stated_typical", "stated_guaranteed", "note"])
        for name, machine, threads, one, note in found:
            size = np.abs(list(one.own.values()))
            shares = (size.mean(), mean_over_families(one.own), np.quantile(size, 0.9), size.max())
            families = len({row.family for row in one.rows})
            device, _, backend = machine.partition("|")
            numbers = [f"{share:.4f}" for share in shares]
            stated = [f"{_up(one.typical):.3f}", f"{_up(one.guaranteed):.3f}"]
            writer.writerow(
                [name, device, backend, threads, len(one.rows), families, *numbers, len(one.shape_rows), *stated, note]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="phone_latency.csv")
    parser.add_argument("--catalog", type=Path, default=CATALOG, help="the folder to write the profiles to")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write device_profiles.csv to")
    options = parser.parse_args()
    published = read(options.table)
    works = count_all(row.network for row in published)
    rows: dict[Key, list[Row]] = {}
    for row in published:
        rows.setdefault((row.device, row.backend, row.threads), []).append(row)
    found = {plan.name: {n: fit_plan(plan, n, rows, works) for n in plan.threads} for plan in PLANS}
    profiles = {plan.name: profile_of(plan, found[plan.name], works) for plan in PLANS}
    plan, words = best_pixel(found)
    best = profiles[plan.name]
    profiles["pixel"] = replace(best, name="pixel", provenance=f"{words}\n{best.provenance}")
    for name, profile in profiles.items():
        write_profile(profile, options.catalog / f"{name}.toml")
    table = [(p.name, f"{p.device}|{p.backend}", n, one, "") for p in PLANS for n, one in found[p.name].items()]
    for tried, why in TRIED:
        n = tried.threads[0]
        table.append(("", f"{tried.device}|{tried.backend}", n, fit_plan(tried, n, rows, works), f"not shipped: {why}"))
    write_table(table, options.results / "device_profiles.csv")
    for name, machine, n, one, _ in table:
        print(f"{name or machine:32} {n} threads: {_mean(one.own):.1%} on its own rows, stated {one.typical:.1%}")


if __name__ == "__main__":
    main()
