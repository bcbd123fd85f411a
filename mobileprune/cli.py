"""The command line: parse, call, print. Everything heavy is imported inside the commands, so --help is instant."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobileprune.errors import MobilepruneError, UsageError

if TYPE_CHECKING:
    from mobileprune.progress import Display
    from mobileprune.run import Run
    from mobileprune.stages.context import Context

_INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


class _Group(click.Group):
    """Commands in the order of the journey; errors as one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            _fail(str(error), 2)
        except MobilepruneError as error:
            _fail(str(error), 1)
        except Exception as error:
            # The wings have error classes of their own; importing them here would make every command slow.
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if not kinds & {"DeviceError", "ExportError"}:
                raise
            _fail(str(error), 2 if "ProfileError" in kinds else 1)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mobileprune")
def main() -> None:
    """Prune a trained CNN along depth, width and input resolution to a budget measured on your device.

    \b
    Try it on the bundled digits:  mobileprune optimize --device host --budget 50%
    """


_BUDGET_HELP = "What must hold: 12ms, 50% (of the base's latency), 300MMACs, 1.5MParams, 2MB. May be repeated."


def _budget_option(required: bool = False) -> Callable[..., Any]:
    return click.option("--budget", "budgets", multiple=True, required=required, metavar="LIMIT", help=_BUDGET_HELP)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON for programs.")
_run_argument = click.argument("run", type=click.Path(path_type=Path, file_okay=False), metavar="RUN")


@main.command(short_help="The whole journey, from a trained CNN to measured files.")
@click.option("--model", help="NAME, torchvision:NAME, timm:NAME or path/to/file.py:factory.  [default: resnet20]")
@click.option("--model-arg", "model_arguments", multiple=True, metavar="KEY=VALUE", help="Passed to the constructor.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Trained weights (.safetensors, or a torch file).")
@click.option("--data", help="digits, a folder of class folders, or an .npz file.  [default: digits]")
@click.option("--image-size", type=click.IntRange(8), help="Side in pixels at which the base sees images.")
@click.option("--device", help="A device profile, such as host.  [default: host]")
@_budget_option()
@click.option("--run", "path", type=click.Path(path_type=Path), help="Run folder; an existing one is continued.")
@click.option("--probes", type=click.IntRange(4, 64), help="How many scales are probed at most.  [default: 8]")
@click.option("--confidence", type=click.FloatRange(0, 1, True, True), help="That the budget is kept.  [default: 0.8]")
@click.option("--profile-scales", type=click.IntRange(10, 64), help="How many scales are measured.  [default: 12]")
@click.option("--rounds", type=click.IntRange(2, 100), help="Measuring rounds of every file.  [default: 7]")
@click.option("--round-seconds", type=click.FloatRange(0), help="Least time of a file in a round.  [default: 0.25]")
@click.option("--base-epochs", type=click.IntRange(0), help="Training of the base.  [default: 20; 0 with weights]")
@click.option("--probe-epochs", type=click.IntRange(1), help="Fine-tuning of each probe.  [default: 4]")
@click.option("--epochs", type=click.IntRange(1), help="Fine-tuning of the result.  [default: 16]")
@click.option("--batch-size", type=click.IntRange(2), help="[default: 64]")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), help="Of the base.  [default: 0.1; 0.02 with weights]"
)
@click.option("--finetune-learning-rate", type=click.FloatRange(0, min_open=True), help="[default: 0.02]")
@click.option("--distillation", type=click.FloatRange(0, 1), help="Weight of the base's answers.  [default: 0.5]")
@click.option("--seed", type=click.IntRange(0), help="Fixes splits, weights and order.  [default: 0]")
@_json_option
def optimize(path: Path | None, budgets: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """From a trained CNN to a smaller one that keeps the budget on the device: files, measurements and a report.

    \b
    Example:  mobileprune optimize --device host --budget 50% --run runs/demo
    """
    from mobileprune.budget import parse_budgets
    from mobileprune.request import Request, open_or_create
    from mobileprune.run import locked

    asked = parse_budgets(budgets)
    request = Request(**flags)
    path = path or _default_folder(request)
    if not asked and not (path / "run.toml").exists():
        raise UsageError("no --budget: say what must hold, for example --budget 50% or --budget 12ms")
    with _resumable("optimize", "--run", path), locked(path):
        run = open_or_create(path, request)
        try:
            _journey(run, budgets, as_json)
        except UsageError:
            run.discard_if_unbegun()
            raise


def _default_folder(request: Any) -> Path:
    """A new folder under runs/ named after the model, the data and a number; never an existing one."""
    model = (request.model or "resnet20").rpartition(":")[2]
    stem = f"{model}-{Path(request.data or 'digits').stem}"
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def _journey(run: Run, budgets: tuple[str, ...], as_json: bool) -> None:
    from mobileprune.optimize import optimize as whole_journey
    from mobileprune.stages.solve import current_budgets, set_budgets

    if budgets:
        set_budgets(run, budgets)
    current_budgets(run)  # says so now where there is none
    whole_journey(_context(run))
    _print_summary(run, as_json)


def _context(run: Run) -> Context:
    from mobileprune.stages.context import Context

    return Context(run, _display())


def _display() -> Display:
    from rich.console import Console

    from mobileprune.progress import Terminal

    return Terminal(Console(stderr=True))


@contextmanager
def _resumable(*words: object) -> Iterator[None]:
    """Ctrl-C ends with the command that goes on from there."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["mobileprune", *map(str, words)])
        click.echo(f"\nstopped; what is finished is kept. Go on with: {command}", err=True)
        sys.exit(_INTERRUPTED)


def _print_summary(run: Run, as_json: bool) -> None:
    from mobileprune.stages.summary import summarise, tables

    summary = summarise(run)
    for part in [json.dumps(summary, indent=1)] if as_json else tables(summary):
        _print(part)


def _stage(name: str, short: str, what: str, *steps: str) -> None:
    """Add the command of one stage (``stages/NAME.py``, or ``steps``): it does on a run folder what is not done yet."""

    def command(run: Path, budgets: tuple[str, ...], as_json: bool) -> None:
        _run_stage(run, name, steps or (name,), budgets, as_json)

    command.__doc__ = f"{what}\n\n\b\nExample:  mobileprune {name} runs/demo"
    main.command(name, short_help=short)(_run_argument(_budget_option()(_json_option(command))))


def _run_stage(path: Path, name: str, steps: tuple[str, ...], budgets: tuple[str, ...], as_json: bool) -> None:
    from importlib import import_module

    from mobileprune.run import Run, locked
    from mobileprune.stages.solve import set_budgets

    Run.open(path)  # before the lock: a folder that is no run must not be touched
    with _resumable(name, path), locked(path):
        run = Run.open(path)
        if budgets:
            set_budgets(run, budgets)
        for step in steps:
            getattr(import_module(f"mobileprune.stages.{step}"), step)(_context(run))
        if as_json:
            from mobileprune.stages.summary import status as status_of

            _print(json.dumps(status_of(run), indent=1))


def _print(what: Any) -> None:
    """Text as it is, tables and styled text as the terminal allows."""
    if isinstance(what, str):
        click.echo(what)
        return
    from rich.console import Console

    Console().print(what, soft_wrap=True)


_stage(
    "profile",
    "Latency of a spread of scales.",
    "Measure the latency of a spread of scales of RUN's model on its device.",
)
_stage(
    "probe",
    "Accuracy of a few scales.",
    "Prune and briefly fine-tune a few scales of RUN to learn what accuracy they keep.",
)


@main.command(short_help="The best scale under a budget, without training.")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False), metavar="[RUN]", required=False)
@click.option("--accuracy", type=click.Path(path_type=Path), help="A table: depth,width,resolution,accuracy[,std].")
@click.option("--latency", type=click.Path(path_type=Path), help="A table: depth,width,resolution,latency_ms[,device].")
@_budget_option()
@click.option("--choose-from", type=click.Choice(["latency", "space"]), default="latency", show_default=True)
@click.option("--confidence", type=click.FloatRange(0, 1, True, True), help="That the budget is kept.  [default: 0.8]")
@click.option("--surrogate", default="auto", show_default=True, help="auto, polynomial (the paper's) or another form.")
@_json_option
def solve(
    run: Path | None, accuracy: Path | None, latency: Path | None, budgets: tuple[str, ...], as_json: bool, **how: Any
) -> None:
    """Say which scale is best under a budget, at once and without training: of RUN's journal, or of your own tables.

    \b
    Example:  mobileprune solve runs/demo --budget 30%
              mobileprune solve --accuracy acc.csv --latency lat.csv --budget 24ms
    """
    how = {name: value for name, value in how.items() if value is not None}
    if run is None:
        if accuracy is None or latency is None:
            raise UsageError("nothing to solve: name a run folder, or give both --accuracy and --latency tables")
        from mobileprune.search.tables import solve_tables
        from mobileprune.search.words import describe_answer

        answer = solve_tables(accuracy, latency, budgets, **how)
        lines = describe_answer(answer)
    else:
        if accuracy is not None or latency is not None:
            raise UsageError(f"both the run {run} and tables were given: solve one or the other")
        from mobileprune.budget import parse_budgets
        from mobileprune.run import Run
        from mobileprune.stages.solve import current_budgets, describe_solution, solve_run

        opened = Run.open(run)
        asked = parse_budgets(budgets) or current_budgets(opened)
        solution = solve_run(opened, asked, how.get("confidence"), how["surrogate"])
        answer, lines = solution.to_dict(), describe_solution(opened, solution, asked)
    click.echo(json.dumps(answer, indent=1) if as_json else "\n".join(lines))


_stage(
    "prune",
    "Settle on a scale and cut it.",
    "Settle on a scale of RUN that keeps the budget, measured, and cut it from the nearest probe.",
    "settle",
    "prune",
)
_stage("finetune", "Train the pruned network.", "Fine-tune the pruned network of RUN.")
_stage(
    "export",
    "Write and verify ONNX and TFLite files.",
    "Write RUN's base and result as ONNX and TFLite files and verify them in their runtimes.",
)


@main.command(short_help="Time RUN's files, or any model files.")
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|FILE...")
@click.option("--device", default="host", show_default=True, help="A device profile; of a run it is the run's own.")
@click.option("--rounds", type=click.IntRange(2, 100), default=7, show_default=True, help="Of every file.")
@click.option("--round-seconds", type=click.FloatRange(0), default=0.25, show_default=True, help="Least time a round.")
@click.option("--threads", type=click.IntRange(1), help="Of the runtime.  [default: the profile's]")
@_budget_option()
@_json_option
def bench(targets: tuple[Path, ...], budgets: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Time a RUN's base and result, or any .onnx and .tflite FILEs, in interleaved rounds on the device.

    \b
    Example:  mobileprune bench runs/demo
              mobileprune bench a.onnx b.tflite --device host
    """
    if len(targets) == 1 and targets[0].is_dir():
        _run_stage(targets[0], "bench", ("bench",), budgets, as_json)
        return
    from mobileprune.measuring import bench_files, bench_table

    display = _display()
    report = bench_files(targets, display=display, **how)
    for warning in report.warnings:
        display.say(warning, style="yellow")
    _print(json.dumps(report.to_dict(), indent=1) if as_json else bench_table(report))


_stage("report", "Write report.html.", "Write RUN's report.html from what its journal holds.")


@main.command(short_help="How far RUN is, and what comes next.")
@_run_argument
@_json_option
def status(run: Path, as_json: bool) -> None:
    """Say what RUN has finished, and what comes next; also while another process works on it.

    \b
    Example:  mobileprune status runs/demo
    """
    from mobileprune.run import Run
    from mobileprune.stages.summary import status as status_of

    found = status_of(Run.open(run))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for stage in found["stages"]:
        click.echo(f"{stage['name']:>9}  {stage['state']}")
    click.echo(f"{'next':>9}  {found['next']}")


@main.command(short_help="What --device takes.")
@_json_option
def devices(as_json: bool) -> None:
    """List what --device takes, and how far latencies that are predicted are off.

    \b
    Example:  mobileprune devices
    """
    from mobileprune.measuring import devices_table, known_devices

    _print(json.dumps(known_devices(), indent=1) if as_json else devices_table())


@main.command(short_help="What can be pruned in a model, and what cannot.")
@click.argument("model")
@click.option("--model-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="Passed to the constructor.")
@click.option("--image-size", type=click.IntRange(8), help="[default: 32 for built-in models, else 224]")
@_json_option
def explain(model: str, arguments: tuple[str, ...], image_size: int | None, as_json: bool) -> None:
    """Say what can be pruned in MODEL along each dimension, what cannot and why, and the smallest scale.

    \b
    Example:  mobileprune explain torchvision:mobilenet_v2
    """
    from mobileprune.api import explain as explain_model

    found = explain_model(model, arguments, image_size)
    _print(json.dumps(found.to_dict(), indent=1) if as_json else "\n".join(found.lines()))


@main.command(short_help="What was cut from the base, layer by layer.")
@click.argument("path", type=click.Path(path_type=Path), metavar="RUN|RECIPE")
@_json_option
def diff(path: Path, as_json: bool) -> None:
    """Say what RUN's result, or a recipe.json of its scales, has lost: blocks in words, layers before and after.

    \b
    Example:  mobileprune diff runs/demo
    """
    from mobileprune.api import diff as diff_recipe

    found = diff_recipe(path)
    _print(json.dumps(found.to_dict(), indent=1) if as_json else "\n".join(found.lines()))
