"""The report: what its sentences say of known figures, and that the page is whole, small, safe and needs no network."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_evidence import ASKED, NARROW, embedded, evidence, point, summary, whole_page

from mobileprune.report import words
from mobileprune.report.comparison import Compared, comparison_page
from mobileprune.report.evidence import Block
from mobileprune.report.figures import figures, frontier
from mobileprune.report.page import comparison_rows, page
from mobileprune.report.usage import snippets
from mobileprune.scale import Scale

VOID = {"meta", "link", "input", "br"}


class Balanced(HTMLParser):
    """Fails on elements that are not closed in order; collects ids, references and outside addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "action"):
                local = (value or "").startswith(("#", "data:"))
                (self.references if local else self.outside).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text() -> str:
    return whole_page()


def test_the_page_is_well_formed_self_contained_and_small(text: str) -> None:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.outside == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert {r[1:] for r in parser.references if r.startswith("#")} <= set(parser.ids)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 6_000_000


def test_what_a_run_says_cannot_become_markup(text: str) -> None:
    assert "alert(1)</script>" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "<b>cpu</b>" not in text
    names = page(summary("a</script>b"), evidence(), [], ASKED, "x")
    assert "a</script>b" not in names


def test_the_answer_comes_first_with_its_origin(text: str) -> None:
    answer = text[text.index("<body>") : text.index("<h2>")]
    assert re.search(r"Budget 5ms kept</span> 4 ms measured, limit 5 ms", answer)
    assert "88.0 %" in answer and "base 90.0 %, -2.0 points" in answer
    assert "2.50 times faster" in answer
    missed = summary()
    missed["budgets"][0] |= {"kept": False, "verdict": "missed"}
    assert '"badge missed">Budget 5ms missed' in page(missed, evidence(), [], ASKED, "x")


def test_an_interval_says_how_sure_it_is() -> None:
    """Of n rounds the lowest and the highest hold the median between them with probability 1 - 2^(1 - n)."""
    for rounds, said in ((3, "75 % interval"), (5, "94 % interval"), (6, "95 % interval"), (20, "95 % interval")):
        told = summary()
        told["result"]["files"]["onnx"]["latency"]["round_minima_ms"] = [4.0] * rounds
        assert f"onnx: latency, measured ({said})" in comparison_rows(told["result"])
    told["result"]["files"]["onnx"]["latency"]["origin"] = "predicted"
    assert "onnx: latency, predicted (guaranteed error)" in comparison_rows(told["result"])


def test_the_slider_holds_a_hundred_budgets(text: str) -> None:
    choices = embedded(text, "choices")
    assert len(choices) == 100
    first, last = choices[0]["shown"], choices[-1]["shown"]
    assert first["limit"] == "2 ms" and first["accuracy"] == "60.0 % (58.0 to 62.0)"
    assert (last["depth"], last["width"], last["resolution"]) == ("0.5", "1", "0.75")
    assert last["command"] == "mobileprune optimize --run demo --budget 9.92ms --budget 2MB"
    stop = int(re.search(r"id=budget min=0 max=99 value=(\d+)", text)[1])  # type: ignore[index]
    assert choices[stop]["x"] == pytest.approx(5.0, abs=0.05)  # where the run's own budget is


def test_fewer_flops_slower_is_found_and_explained() -> None:
    said = " ".join(words.macs(evidence()))
    assert f"Fewer FLOPs, slower: {NARROW} does 10 % of the base's multiply-accumulates in 6 ms" in said
    assert "d=0.5 w=1 r=0.75 does 30 % in 4 ms" in said
    assert "It has 100 % of the base's layers instead of 50 %" in said
    assert "52 % by depth (0.5)" in said
    close = [evidence().base, point(Scale(1, 0.5), 2.0, 6.6e6), point(Scale(0.5), 1.0, 7.4e6)]
    said_of_close = " ".join(words.macs(replace(evidence(), measured=close)))
    assert "does 6.6 % of" in said_of_close and "does 7.4 % in" in said_of_close  # and not 7 % each
    orderly = replace(evidence(), measured=[evidence().base, point(Scale(0.5), 5.0, 50e6)])
    assert "Fewer FLOPs, slower" not in " ".join(words.macs(orderly))


def test_prices_name_the_next_networks() -> None:
    said = words.prices(evidence())
    assert said[0] == "One more ms on latency is worth 0.4 points."
    assert any(line.startswith("The next cheaper network (d=0.5 w=0.5 r=0.5)") for line in said)


def test_blocks_and_coverage_in_words() -> None:
    assert words.blocks(evidence()) == [
        "1 of 2 parts were removed (stages.0); 10 % of the multiply-accumulates are left."
    ]
    whole = replace(evidence(), blocks=[Block("a", 10, 5)])
    assert words.blocks(whole)[0].startswith("No part was removed whole; 50 %")
    far = replace(evidence().base, latency_ms=30.0)
    assert "2 of 3 lie within" in words.latency(replace(evidence(), measured=[far, *evidence().measured[1:]]))[0]


def test_figures_without_data_are_left_out_and_said() -> None:
    bare = replace(evidence(), slices=[], blocks=[], curves=[], untrained=[])
    assert [f.key for f in figures(bare)] == ["latency", "macs"]
    assert [f.key for f in figures(evidence())] == ["slices", "untrained", "latency", "macs", "blocks", "curves"]
    assert "no bars: a reason" in whole_page()


def test_a_frontier_over_macs_shows_no_latency_points() -> None:
    counted = replace(evidence(), limit_name="macs", limit_unit="MMACs")
    assert [trace.name for trace in frontier(counted).panels[0].data][-2:] == ["predicted best", "the slider"]


def test_every_file_says_how_to_load_it() -> None:
    """That the code is right is shown where it is run and compiled: tests/peers/test_load_snippets.py."""
    files = summary()["result"]["files"]
    files["tflite"] |= {"takes": "int8", "gives": "int8"}
    found = snippets("runs/x", files, stored=32)
    assert [(what, language) for what, language, _ in found] == [
        ("the PyTorch module", "Python"),
        ("onnx", "Python"),
        ("onnx", "C++"),
        ("tflite", "Python"),
        ("tflite", "Android (Kotlin)"),
        ("tflite", "C++"),
    ]
    code = {(what, language): text for what, language, text in found}
    assert not any("$" in text for text in code.values())
    assert "floatArrayOf(0.1f, 0.2f, 0.3f)" in code["tflite", "Android (Kotlin)"]
    assert "for side in [32, 24]:" in code["onnx", "Python"]
    assert all("zero_point" in code["tflite", language] for language in ("Python", "C++"))
    assert "int8" not in code["onnx", "Python"]
    assert code["onnx", "C++"].count("options") == 2


def test_an_int8_onnx_file_is_told_to_be_run_as_it_was_verified() -> None:
    file = summary()["result"]["files"]["onnx"] | {"precision": "int8"}
    (python, cpp) = (text for _, _, text in snippets("runs/x", {"onnx int8": file})[1:])
    assert 'add_session_config_entry("session.x64quantprecision", "1")' in python and ", options)" in python
    assert 'options.AddConfigEntry("session.x64quantprecision", "1")' in cpp


def test_the_report_of_a_run_tells_code_that_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told to type sees in a photo what the run's files see."""
    import numpy as np
    import torch
    from PIL import Image

    from exporters.runtimes import open_runtime
    from mobileprune.data.images import square
    from mobileprune.run import Run
    from mobileprune.stages.summary import summarise
    from mobileprune.training.batches import View

    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg", format="PNG")
    report = html.unescape((finished / "report.html").read_text(encoding="utf-8"))
    stored = 16  # the run's --image-size
    monkeypatch.chdir(tmp_path)
    for name, file in summarise(Run.open(finished))["result"]["files"].items():
        code = next(
            c for what, language, c in snippets("", {name: file}, stored) if (what, language) == (name, "Python")
        )
        assert code in report
        names: dict[str, object] = {}
        exec(code, names)
        spec = file["input"]
        kept = torch.from_numpy(square(Image.fromarray(noise), stored))[None]
        seen = View(spec["height"], tuple(spec["mean"]), tuple(spec["std"]))(kept).contiguous().numpy()
        wanted = open_runtime(Path(file["path"]))(seen)
        assert np.argmax(names["logits"]) == wanted.argmax()  # type: ignore[call-overload]
        assert np.abs(np.asarray(names["logits"]) - wanted).max() < 0.2


def test_a_comparison_shows_each_run_and_every_label() -> None:
    runs = [Compared(f"run-{i}", {"model": "net", f"only {i}": "x"}, evidence()) for i in range(2)]
    text = comparison_page(runs, ["model", "only 0", "only 1"])
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and parser.outside == []
    assert "Their frontiers" in text and "run-1" in text
    other = replace(evidence(), limit_name="macs", limit_unit="MMACs")
    apart = comparison_page([runs[0], replace(runs[1], evidence=other)], ["model"])
    assert "Their frontiers" not in apart


def test_the_report_of_a_real_run(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and parser.outside == []
    assert len(text.encode()) < 6_000_000
    for key in ("frontier", "slices", "untrained", "latency", "macs", "blocks", "curves"):
        assert f'id="figure-{key}"' in text, key
    assert len(embedded(text, "choices")) > 1
    assert "--model-arg blocks=2" in text  # the whole question is in the command that makes it again


def test_an_integer_files_accuracy_is_its_own() -> None:
    told = summary()
    for side, whole, own in ((told["base"], 0.91, 0.89), (told["result"], 0.87, 0.84)):
        side["accuracy"]["test"] = {**side["accuracy"]["validation"], "accuracy": whole}
        for file in side["files"].values():
            file |= {"precision": "int8", "test_accuracy": own, "accuracy": own}
    text = page(told, evidence(), [], ASKED, "", [])
    first = text[text.index("<dl class=tiles>") :].partition("</div>")[0]
    assert "accuracy, test, measured, onnx file" in first and "84.0 %" in first and "base 89.0 %, -5.0 points" in first
    rows = comparison_rows(told["result"])
    assert rows["top-1, test (torch)"].startswith("87.0") and rows["onnx: top-1 of the file, test"] == "84.0 %"


def test_a_run_with_a_space_in_its_name_is_quoted() -> None:
    text = page(summary("my runs/a"), evidence(), [], ASKED, "", [])
    assert embedded(text, "choices")[0]["shown"]["command"].startswith("mobileprune optimize --run 'my runs/a' ")
