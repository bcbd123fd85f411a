"""``mobileprune export``: verified files of a run, or of any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mobileprune.commands.common import (
    budget_option,
    json_option,
    make_display,
    no_options,
    print_lines,
    print_out,
    run_stage,
)

_PRECISIONS = ("float32", "float16", "int8", "int8-float-io", "int8-uint8-io", "int16x8", "dynamic")


@click.command(short_help="Verified ONNX, TFLite and ExecuTorch files, of a run or of any model.")
@click.argument("target", metavar="RUN|MODEL")
@click.option("--format", "formats", multiple=True, help="onnx, tflite or executorch; may be repeated.")
@click.option("--precision", type=click.Choice(_PRECISIONS), help="[default: the run's, or float32]")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: RUN/exported]")
@click.option("--data", help="Images to calibrate and verify on; a run has its own.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Trained weights of MODEL.")
@click.option("--model-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="Passed to MODEL's constructor.")
@click.option("--image-size", type=click.IntRange(8), help="[default: the data's, else 224 (built-in models: 32)]")
@click.option("--allowed-drop", type=click.FloatRange(0, 100), default=1.0, show_default=True, help="Points lost.")
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open (ONNX).")
@click.option("--opset", type=click.IntRange(7), help="Operator set of ONNX.  [default: the exporter's]")
@click.option("--seed", type=click.IntRange(0), help="Picks the calibration images.  [default: the run's, or 0]")
@budget_option()
@json_option
def export(
    target: str, formats: tuple[str, ...], output: Path | None, budgets: tuple[str, ...], as_json: bool, **how: Any
) -> None:
    """Write verified files of RUN's base and result, or of any MODEL (torchvision:NAME, timm:NAME, file.py:factory).

    A RUN without further options gets what its journey lacks; with --format, --precision or --output, the files of its
    result in that form.

    \b
    Example:  mobileprune export runs/demo
              mobileprune export runs/demo --format tflite --precision int8
              mobileprune export timm:mobilenetv3_small_050 --format tflite --output exported
    """
    is_run = (Path(target) / "run.toml").is_file()
    if is_run and not formats and how["precision"] is None and output is None:
        no_options(
            "a run's own files are written as it was asked to; for another form add --format, --precision or --output",
            but=["budgets", "as_json"],
        )
        run_stage(Path(target), "export", ("export",), budgets, as_json)
        return
    no_options(
        "only for a RUN without --format, --precision and --output; other files have no budget to keep",
        among=["budgets"],
    )
    from mobileprune.exporting import export_model, export_run, files_table

    display = make_display()
    how |= {"formats": formats, "display": display}
    folder, written = (export_run if is_run else export_model)(target, output, **how)
    if as_json:
        print_out(json.dumps({"folder": str(folder), "files": [one.to_dict() for one in written]}, indent=1))
        return
    print_out(files_table(written))
    print_lines(f"  {one.artifact.path.name}: {one.sentence}" for one in written)
    print_out(f"  {folder}")
