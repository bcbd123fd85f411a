"""The search on tables: units, devices, JSON, and refusals that name the file, the row and the reason."""

import itertools
import json
from pathlib import Path

import pytest

from mobileprune.errors import UsageError
from mobileprune.search.tables import solve_tables

WIDTHS, PIXELS, DEPTHS = (0.25, 0.5, 0.75, 1.0), (96, 128, 160, 192, 224), (0.5, 0.75, 1.0)


def top1(depth: float, width: float, pixels: float) -> float:
    return 98.0 - 4 * depth**-0.7 - 7 * width**-0.6 - 6 * (pixels / 224) ** -1.2


def ms(depth: float, width: float, pixels: float) -> float:
    return 2 + 50 * (0.2 + 0.8 * depth) * width**1.6 * (pixels / 224) ** 2


PROBES = [(1, 1, 224), (0.5, 1, 224), (1, 0.25, 224), (1, 1, 96), (0.75, 0.5, 160), (0.5, 0.25, 96), (0.75, 0.75, 192)]
GRID = list(itertools.product(DEPTHS, WIDTHS, PIXELS))


def write(path: Path, header: str, rows: list[tuple[object, ...]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def acc(tmp_path: Path) -> Path:
    return write(tmp_path / "acc.csv", "depth,width,resolution,accuracy", [(*p, top1(*p)) for p in PROBES])


@pytest.fixture
def lat(tmp_path: Path) -> Path:
    return write(tmp_path / "lat.csv", "depth,width,resolution,latency_ms", [(*p, ms(*p)) for p in GRID])


def test_the_answer_is_a_row_of_the_latency_table_near_the_best(acc: Path, lat: Path) -> None:
    answer = solve_tables(acc, lat, ["24ms"])
    chosen = tuple(answer["scale"][k] for k in ("depth", "width", "resolution"))
    assert chosen in GRID
    assert answer["latency_ms"]["measured"] == ms(*chosen) <= 24.0
    assert answer["latency_ms"]["mean"] == answer["latency_ms"]["measured"]
    assert max(top1(*p) for p in GRID if ms(*p) <= 24.0) - top1(*chosen) < 0.3
    assert answer["accuracy"]["low"] <= answer["accuracy"]["mean"] <= answer["accuracy"]["high"]
    assert answer["accuracy"]["low"] <= top1(*chosen) <= answer["accuracy"]["high"]
    assert answer["kkt_residual"] < 1e-6 and answer["multipliers"]["latency"] > 0.0
    assert len(answer["frontier"]) == 100
    assert set(answer["surrogate"]) >= {"form", "rank", "degree", "cv_error", "candidates"}
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_units_and_order_of_rows_do_not_change_the_answer(acc: Path, lat: Path, tmp_path: Path) -> None:
    rows = [(f"{d}", w, p / 224, top1(d, w, p) / 100, "") for d, w, p in reversed(PROBES)]
    other = write(tmp_path / "b.csv", "Depth, Width, Resolution, Accuracy, std", rows)
    plain, fractions = solve_tables(acc, lat, ["24ms"]), solve_tables(other, lat, ["24 ms"])
    assert fractions["scale"] == plain["scale"]
    assert (plain["accuracy_unit"], fractions["accuracy_unit"]) == ("percent", "fraction")
    assert fractions["accuracy"]["mean"] * 100 == pytest.approx(plain["accuracy"]["mean"], abs=1e-6)
    assert fractions["next_probe"] is None or fractions["next_probe"]["resolution"] in PIXELS


def test_missing_columns_are_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", "resolution,accuracy", [(p, top1(1, 1, p)) for p in PIXELS])
    b = write(tmp_path / "b.csv", "resolution,latency_ms", [(p, ms(1, 1, p)) for p in PIXELS])
    answer = solve_tables(a, b, ["60%"])
    assert answer["scale"] == {"depth": 1.0, "width": 1.0, "resolution": 160.0}


def test_the_space_between_the_rows_can_be_chosen_from(acc: Path, lat: Path) -> None:
    rows, space = (solve_tables(acc, lat, ["24ms"], choose_from=c, confidence=0.8) for c in ("latency", "space"))
    assert space["accuracy"]["mean"] >= rows["accuracy"]["mean"]
    assert float(space["scale"]["resolution"]).is_integer()
    assert space["devices"]["latency"]["probability"] >= 0.8
    assert space["latency_ms"]["mean"] <= 24.0


def test_each_device_keeps_its_own_budget(acc: Path, tmp_path: Path) -> None:
    rows = [(*p, ms(*p) * f, name) for p in GRID for name, f in (("pixel", 1.0), ("moto", 3.0))]
    lat = write(tmp_path / "lat.csv", "depth,width,resolution,latency_ms,device", rows)
    answer = solve_tables(acc, lat, ["pixel=40ms", "moto=45ms"])
    assert answer["devices"]["moto"]["measured"] <= 45.0
    assert list(answer["devices"]) == ["pixel", "moto"]
    assert answer["prices"][0] == "the pixel limit (40 ms) does not bind"
    assert "one more ms on moto is worth" in answer["prices"][1]
    assert max(d["measured"] for d in solve_tables(acc, lat, ["30ms"])["devices"].values()) <= 30.0
    with pytest.raises(UsageError, match="did you mean 'pixel'"):
        solve_tables(acc, lat, ["pixle=40ms"])
    with pytest.raises(UsageError, match="two budgets for moto"):
        solve_tables(acc, lat, ["40ms", "moto=45ms"])


def test_widths_above_one_are_multiples(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", "width,resolution,accuracy", [(1.4 * w, p, top1(d, w, p)) for d, w, p in PROBES])
    b = write(
        tmp_path / "b.csv", "width,resolution,latency_ms", [(1.4 * w, p, ms(1, w, p)) for w in WIDTHS for p in PIXELS]
    )
    answer = solve_tables(a, b, ["24ms"])
    assert answer["scale"]["width"] in [pytest.approx(1.4 * w) for w in WIDTHS]
    assert max(answer["share"].values()) <= 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("width,accuracy\n", "a header but no rows"),
        ("width,score\n1,70\n", "no column 'accuracy'"),
        ("width,width,accuracy\n1,1,70\n", "two columns named 'width'"),
        ("width,accuracy\n1,70\n0.5,many\n", "row 3: accuracy 'many' is not a number"),
        ("width,accuracy\n1,70\n\n0.5,\n", "row 4: accuracy is empty"),
        ("width,accuracy\n1,70\n0.5,nan\n", "row 3: accuracy is nan"),
        ("width,accuracy\n1,70\n-0.5,60\n", "row 3: width is -0.5"),
        ("width,accuracy\n1,70\n0.5\n", "row 3: 1 cells under 2 columns"),
        ("width,accuracy\n1,70\n0.5,0.6\n", "row 3: accuracy 0.6 is a fraction but other rows are in percent"),
        ("width,accuracy\n1,170\n", "row 2: accuracy 170 is above 100"),
        (
            "width,resolution,accuracy\n1,224,70\n1,0.5,60\n",
            "row 3: resolution 0.5 is a share but other rows have pixels",
        ),
        ("width,accuracy,std\n1,70,0.2\n0.5,60,\n", "row 3: std is empty but other rows"),
        ("width,accuracy,std\n1,70,0.2\n0.5,60,-1\n", "row 3: std is -1"),
        ("width,accuracy\n1,70\n1,71\n", "known at 1 distinct scale"),
        ("accuracy\n70\n71\n72\n", "known at 1 distinct scale"),
    ],
)
def test_bad_tables_are_refused_with_the_row_and_the_reason(text: str, reason: str, lat: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(text)
    with pytest.raises(UsageError) as caught:
        solve_tables(bad, lat, ["24ms"])
    assert str(bad) in str(caught.value)
    assert reason in str(caught.value)


def test_bad_latency_tables_files_and_budgets_are_refused(acc: Path, lat: Path, tmp_path: Path) -> None:
    zero = write(tmp_path / "z.csv", "width,latency_ms", [(1, 3.0), (0.5, 0)])
    with pytest.raises(UsageError, match=r"z\.csv, row 3: latency_ms is 0; it must be a finite number above 0"):
        solve_tables(acc, zero, ["24ms"])
    with pytest.raises(UsageError, match="does not exist"):
        solve_tables(tmp_path / "none.csv", lat, ["24ms"])
    with pytest.raises(UsageError, match="cannot be read"):
        solve_tables(tmp_path, lat, ["24ms"])
    with pytest.raises(UsageError, match="choose from latency or space"):
        solve_tables(acc, lat, ["24ms"], choose_from="moon")
    with pytest.raises(UsageError, match="the tables know nothing"):
        solve_tables(acc, lat, ["300MMACs"])
    with pytest.raises(UsageError, match="no budget is given"):
        solve_tables(acc, lat, [])
    with pytest.raises(UsageError, match=r"smallest reachable is 2\.\d+ ms at d=0\.5 w=0\.25"):
        solve_tables(acc, lat, ["1ms"])
    with pytest.raises(UsageError, match="no surrogate is called"):
        solve_tables(acc, lat, ["24ms"], surrogate="magic")


def test_accuracies_that_never_vary_depth_do_not_answer_for_other_depths(lat: Path, tmp_path: Path) -> None:
    flat = write(tmp_path / "a.csv", "width,resolution,accuracy", [(w, p, top1(1, w, p)) for _, w, p in PROBES])
    with pytest.raises(UsageError, match="every sample of accuracy has depth 1"):
        solve_tables(flat, lat, ["24ms"])


def test_a_loose_budget_keeps_the_base(acc: Path, lat: Path) -> None:
    answer = solve_tables(acc, lat, ["100ms"])
    assert answer["base_suffices"]
    assert answer["share"] == {"depth": 1.0, "width": 1.0, "resolution": 1.0}


@pytest.mark.parametrize("form", ["monotone", "power-law-gp", "polynomial"])
def test_the_form_can_be_chosen(form: str, acc: Path, lat: Path) -> None:
    answer = solve_tables(acc, lat, ["24ms"], surrogate=form)
    assert answer["surrogate"]["form"] == form
    assert (answer["surrogate"]["rank"] is not None) == (form == "polynomial")


def test_the_space_keeps_to_the_one_value_of_an_axis_that_was_probed(lat: Path, tmp_path: Path) -> None:
    shallow = [(0.5, w, r, top1(0.5, w, r)) for _, w, r in PROBES if (w, r) != (1, 1)] + [
        (0.5, 1, 224, top1(0.5, 1, 224))
    ]
    probed = write(tmp_path / "shallow.csv", "depth,width,resolution,accuracy", shallow)
    answer = solve_tables(probed, lat, ["24ms"], choose_from="space")
    assert answer["scale"]["depth"] == 0.5
