"""The code in README.md and docs/: every block is run, or says why not; links lead somewhere; the site builds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import pytest
from conftest import TINY

from mobileprune.cli import main
from mobileprune.commands.configured import keys_of
from mobileprune.commands.optimize import optimize
from mobileprune.configuration import read

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
PROGRAMS = ("mobileprune", ".venv/bin/mobileprune", "make", "python", "pip", "source", "git")
_BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block. why: the reason for which it is not run."""

    page: Path
    line: int
    language: str
    code: str
    why: str | None

    @property
    def kind(self) -> str:
        """The language, guessed where the page does not say: commands, or plain text."""
        if self.language:
            return self.language
        first = (self.code.split() or [""])[0]
        return "sh" if first in PROGRAMS else "text"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a block of them, one per line."""
        lines = [shlex.split(line, comments=True) for line in self.code.replace("\\\n", " ").splitlines()]
        return [words for words in lines if words]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        yield Block(page, line, match["language"], match["code"], match["why"])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def desk(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages speak of: runs, a model file, images, tables, files to time."""
    desk = tmp_path_factory.mktemp("desk")
    for run in ("demo", "other"):
        shutil.copytree(finished, desk / "runs" / run)
    (desk / "path/to").mkdir(parents=True)
    source = TINY.read_text().replace(
        "def tiny(blocks=2, classes=10):", "def make_net(classes=2, checkpoint=None, blocks=2):"
    )
    (desk / "path/to/net.py").write_text(source)
    (desk / "net.pt").write_bytes(b"")
    from test_data import write_image

    for split, count in (("train", 6), ("val", 3)):
        for label, colour in (("cats", (200, 0, 0)), ("dogs", (0, 0, 200))):
            for i in range(count):
                write_image(desk / "path/to/images" / split / label / f"{i}.png", (colour[0], i, colour[2]))
    results = next((desk / "runs/demo/results").iterdir()) / "artifacts"
    for target in ("a.onnx", "b.tflite"):
        shutil.copy(next(results.glob(f"*.{target[2:]}")), desk / target)
    scales = [(d, r) for d in (1, 0.5) for r in (1, 0.75, 0.5)]
    (desk / "acc.csv").write_text(
        "depth,width,resolution,accuracy\n" + "".join(f"{d},1,{r},{0.5 + 0.2 * d * r}\n" for d, r in scales)
    )
    (desk / "lat.csv").write_text(
        "depth,width,resolution,latency_ms\n" + "".join(f"{d},1,{r},{10 + 30 * d * r * r}\n" for d, r in scales)
    )
    return desk


def environment(desk: Path) -> dict[str, str]:
    """A PATH on which ``mobileprune`` is this one."""
    program = desk / "bin" / "mobileprune"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nfrom mobileprune.cli import main\nmain(prog_name='mobileprune')\n")
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(desk), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def tried() -> set[tuple[str, ...]]:
    """Command lines that were run, on whatever page."""
    return set()


def right(done: subprocess.CompletedProcess[str], words: list[str]) -> bool:
    """Whether a command did what its page says. How small the network of this test can get, and how quiet it is, depend
    on the machine: that a budget is out of reach, with the smallest one that is not, is an answer of ``solve``, and
    that the machine is too busy to be measured one of ``bench``."""
    refusals = {"solve": "the smallest reachable", "bench": "no latency can be told"}
    return done.returncode == 0 or refusals.get(words[1], "\0") in done.stderr


def runs_right(words: list[str], desk: Path, tried: set[tuple[str, ...]], where: str) -> None:
    """Run a command line on the desk, each one once."""
    if words[1] == "optimize" and "--dry-run" not in words:
        words = [*words, "--dry-run"]
    if tuple(words) in tried:
        return
    tried.add(tuple(words))
    done = subprocess.run(words, cwd=desk, capture_output=True, text=True, env=environment(desk), timeout=250)
    assert right(done, words), f"{where}: {shlex.join(words)}\n{done.stderr}"
    (desk / "mobileprune.toml").unlink(missing_ok=True)  # what init writes would be read by all others


@pytest.mark.parametrize("command", sorted(main.commands))
def test_the_example_in_every_help_runs(command: str, desk: Path, tried: set[tuple[str, ...]]) -> None:
    """The first one; the others, which may need a phone, are parsed with all the rest of the words."""
    text = main.commands[command].help or ""
    example = text[text.index("Example:") + len("Example:") :].splitlines()[0]
    runs_right(shlex.split(example, comments=True), desk, tried, f"{command} --help")


@pytest.mark.timeout(900)  # the first also waits for the desk; others may run beside
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_on_the_page_runs(page: Path, desk: Path, tried: set[tuple[str, ...]]) -> None:
    """``optimize`` takes minutes: its line is run with --dry-run, which builds the model and reads the data. One that
    is not run is parsed by the real parser, which knows every option."""
    for block in blocks(page):
        for words in block.commands if block.kind == "sh" else []:
            words[0] = words[0].removeprefix(".venv/bin/")
            if words[0] == "make":
                rules = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
                assert rules.returncode == 0, f"{name(page)}:{block.line}: {rules.stderr}"
            if words[0] != "mobileprune":
                continue
            if block.why is not None:
                main.commands[words[1]].make_context(words[1], list(words[2:]))
                continue
            runs_right(words, desk, tried, f"{name(page)}:{block.line}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_python_on_the_page_runs(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.kind == "python":
            code = compile(block.code, f"{name(page)}:{block.line}", "exec")  # also where it is not run
            if block.why is None:
                exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_other_block_is_right_or_says_why_not(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.kind == "toml":
            tomllib.loads(block.code)
            (tmp_path / "m.toml").write_text(block.code)
            read(tmp_path / "m.toml", keys_of(optimize))
        else:
            known = ("sh", "python", "text")
            assert block.kind in known or block.why, (
                f"{name(page)}:{block.line}: {block.kind} is not run, and not said why"
            )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_on_the_page_exist(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{name(page)}: {target}"
    for file in re.findall(r"`((?:mobileprune|device_profiles|exporters|tests|tools|results)/[\w./-]+)`", text):
        assert (ROOT / file).exists() or "my" in file, f"{name(page)}: {file}"


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    missing = pytest.fail if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS") else pytest.skip
    if util.find_spec("mkdocs") is None or util.find_spec("mkdocstrings") is None:
        missing("mkdocs is not installed: pip install 'mobileprune[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/command-line/index.html").read_text()
    for command in main.commands:
        assert f'id="{command}"' in page
    fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert not fetched, fetched
