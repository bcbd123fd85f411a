"""The tools behind the shipped profiles: reading the published table, building its networks, the fit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from device_profiles.operators import KindWork, Work
from device_profiles.predict import predict
from device_profiles.profile import load_profile

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared/data/published/phone_latency.csv"
COUNTS = ROOT / "results/published_networks.csv"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of tools/, as its scripts do among each other."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    for name in ("count_published", "fit_device_profile", "fit_latency", "published_networks", "published_rows"):
        sys.modules.pop(name, None)


def line(model: str, **fields: str) -> dict[str, str]:
    return {"model": model, "width": "1.0", "resolution": "224", "device": "Pixel 2", **fields}


@pytest.mark.parametrize(
    ("row", "network"),
    [
        (line("mobilenet_v1_0.25_128", width="0.25", resolution="128"), "mobilenet_v1-0.25-128"),
        (line("MobileNet v2 1.0X"), "mobilenet_v2-1.0-224"),
        (line("mobilenet-v3-large_224_0.75_float"), "mobilenet_v3_large-0.75-224"),
        (line("mobilenet_v3_small-minimalistic_1.0"), "mobilenet_v3_small_minimal-1.0-224"),
        (line("mobilenet-v3-precision_float-large-minimalistic-224"), "mobilenet_v3_large_minimal-1.0-224"),
        (line("mnasnet_a1_1.4_96", width="1.4", resolution="96"), "mnasnet_a1-1.4-96"),
        (line("mnasnet_1.3_224", width="1.3"), "mnasnet_b1-1.3-224"),
        (line("efficientnet-fp32-lite2", width="1.1", resolution="260"), "efficientnet_lite2-1.1-260"),
        (line("resnet_v2_101", resolution="299"), "resnet_v2_101-1.0-224"),
        (line("resnet_v2_101", resolution="299", device="Pixel 3"), "resnet_v2_101-1.0-299"),
        (line("inception_resnet_v2", resolution="299"), "inception_resnet_v2-1.0-299"),
        (line("vgg16"), None),
    ],
)
def test_rows_are_given_their_network(tools: Any, row: dict[str, str], network: str | None) -> None:
    assert tools("published_rows").network_of(row) == network


def test_reading_leaves_out_what_cannot_be_used(tools: Any, tmp_path: Path) -> None:
    header = "family,model,width,resolution,precision,device,backend,threads,latency_ms,source"
    good = "mobilenet_v1,mobilenet_v1_1.0_224,1.0,224,float32,Pixel 3,tflite cpu,4,24.0,a@1:x.md"
    lines = [
        good,
        good.replace("24.0,a@1:x.md", "23.9,b@2:y.md"),  # the same once more
        good.replace("tflite cpu", "tflite gpu"),
        good.replace("float32", "uint8"),
        good.replace("Pixel 3", "Nokia 3310"),
        good.replace(",4,", ",,"),
        "mnasnet_a1,mnasnet_a1_0.75_96,0.75,96,float32,Pixel 1,tflite cpu,1,17,a@1:x.md",
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join([header, *lines]))
    (row,) = tools("published_rows").read(path)
    assert (row.network, row.threads, row.latency_ms, row.source) == ("mobilenet_v1-1.0-224", 4, 24.0, "a@1:x.md")
    path.write_text("\n".join([header, good.replace("mobilenet_v1_1.0_224", "vgg16")]))
    with pytest.raises(ValueError, match="no builder for the model 'vgg16'"):
        tools("published_rows").read(path)


@pytest.mark.parametrize(
    ("network", "mmacs"),
    # Million multiply-accumulates and parameters in the papers' tables.
    [
        ("mobilenet_v1-1.0-224", 569),
        ("mobilenet_v2-1.0-224", 300),
        ("mnasnet_a1-1.0-224", 312),
        ("squeezenet-1.0-224", 820),
    ],
)
def test_counted_networks_have_the_work_of_their_papers(tools: Any, network: str, mmacs: float) -> None:
    assert tools("count_published").read_counts(COUNTS)[network].macs / 1e6 == pytest.approx(mmacs, rel=0.01)


@pytest.mark.parametrize("network", ["mobilenet_v1-0.25-128", "mobilenet_v3_small-0.75-224"])
def test_the_table_of_counts_is_what_is_counted(tools: Any, network: str) -> None:
    counting = tools("count_published")
    assert counting.count_network(network) == counting.read_counts(COUNTS)[network]


def test_counts_are_written_and_read_back_equal(tools: Any, tmp_path: Path) -> None:
    counting = tools("count_published")
    counts = {"b": Work({"conv": KindWork(1, 2, 3, 12, 4), "pool": KindWork(1)}, 7, 8, {}, 9)}
    counting.write_counts(counts, tmp_path / "counts.csv")
    assert counting.read_counts(tmp_path / "counts.csv") == counts
    assert counting.read_counts(tmp_path / "none.csv") == {}


def made_up(tools: Any, coefficients: np.ndarray) -> tuple[list[Any], dict[str, Work]]:
    """Latencies that follow a law, of all networks that were counted; every architecture is a family."""
    works = tools("count_published").read_counts(COUNTS)
    rows = []
    for name, work in works.items():
        ms = float(tools("fit_latency").features(work) @ coefficients)
        rows.append(tools("published_rows").Row(name, name.partition("-")[0], "a", "b", 1, ms, "a document"))
    return rows, works


def test_a_law_is_found_again(tools: Any) -> None:
    fitting = tools("fit_latency")
    ratios = np.array([ratio for ratio, _ in fitting.PRIOR.values()])
    truth = 100 * ratios * np.exp(0.3 * np.sin(np.arange(len(ratios))))
    rows, works = made_up(tools, truth)
    settings = fitting.Settings.general(1, tight=3.0, noise=0.005)
    errors = fitting.left_out(rows, works, lambda rest, family: fitting.fit(rest, works, settings))
    assert set(errors) == set(rows)
    assert np.mean(np.abs(list(errors.values()))) < 0.01
    assert (fitting.fit(rows, works, settings) > 0).all()


def test_another_document_has_a_scale_of_its_own(tools: Any) -> None:
    fitting = tools("fit_latency")
    ratios = np.array([ratio for ratio, _ in fitting.PRIOR.values()])
    rows, works = made_up(tools, 100 * ratios)
    from dataclasses import replace

    mixed = [
        replace(row, latency_ms=1.2 * row.latency_ms, source="another") if row.family == "mnasnet_a1" else row
        for row in rows
    ]
    settings = fitting.Settings.general(1, tight=0.5, noise=0.01)
    assert fitting.fit(mixed, works, settings) == pytest.approx(100 * ratios, rel=0.03)


def test_the_shipped_profiles_are_what_the_tool_fits(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"the published latencies are not beside the project: {PUBLISHED}")
    arguments = [str(PUBLISHED), "--catalog", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["fit_device_profile.py", *arguments])
    tools("fit_device_profile").main()
    works = tools("count_published").read_counts(COUNTS)
    written = sorted(path.stem for path in tmp_path.glob("*.toml"))
    assert "pixel" in written
    for name in written:
        shipped, fitted = load_profile(name), load_profile(tmp_path / f"{name}.toml")
        assert shipped.provenance == fitted.provenance
        for old, new in zip(shipped.latency, fitted.latency, strict=True):
            assert (old.typical_error, old.guaranteed_error) == (new.typical_error, new.guaranteed_error)
            work = works["mobilenet_v2-1.0-224"]
            assert predict(work, old).latency_ms == pytest.approx(predict(work, new).latency_ms, rel=1e-3)


def test_every_row_of_a_shipped_phone_lies_within_its_guaranteed_error(tools: Any) -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"the published latencies are not beside the project: {PUBLISHED}")
    rows, plans = tools("published_rows").read(PUBLISHED), tools("fit_device_profile").PLANS
    works = tools("count_published").read_counts(COUNTS)
    seen = 0
    for plan in plans:
        models = {model.threads: model for model in load_profile(plan.name).latency}
        for row in rows:
            fitted = (row.device, row.backend) == (plan.device, plan.backend) and row.family not in plan.without
            if fitted and row.threads in models:
                one = predict(works[row.network], models[row.threads])
                # Published whole milliseconds may lie half of one beside what was measured.
                assert one.low_ms - 0.5 <= row.latency_ms <= one.high_ms + 0.5, (plan.name, row)
                seen += 1
    assert seen > 100
