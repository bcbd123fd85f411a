"""mobileprune.toml, init, completion, --dry-run, and the words of the command line."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from conftest import QUESTION, TINY, Call
from hypothesis import given
from hypothesis import strategies as st

from mobileprune.cli import main
from mobileprune.commands.completion import install_script, script_of
from mobileprune.commands.configured import keys_of
from mobileprune.commands.optimize import optimize
from mobileprune.configuration import read, write
from mobileprune.errors import UsageError

KEYS = keys_of(optimize)


def test_every_flag_of_the_question_is_a_key() -> None:
    names = {key.name for key in KEYS}
    flags = {max(p.opts, key=len)[2:] for p in optimize.params if isinstance(p, click.Option)}
    assert flags - names == {"config", "dry-run", "json"}


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)


@given(st.fixed_dictionaries({}, optional={k.field: (st.lists(_TEXT, min_size=1) if k.repeated else
    st.integers(0, 10**6) if k.numeric else st.booleans() if k.flag else _TEXT) for k in KEYS}))  # fmt: skip
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("toml") / "mobileprune.toml"
    path.write_text(write(KEYS, values), encoding="utf-8")
    expected = {name: str(v) if isinstance(v, int) and not isinstance(v, bool) else v for name, v in values.items()}
    assert read(path, KEYS) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("probess = 3", "'probess' is no key; did you mean probes?"),
        ("xyzzy = 3", "'xyzzy' is no key; the keys are model"),
        ("probes = true", "probes is True; it takes a number"),
        ("model = 3.5\nmodel = 4", "cannot be read as TOML"),
        ("probe-epochs = 1\nprobe_epochs = 2", "probe-epochs is there twice"),
        ("[budget]\nx = [1]", "takes text"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(reason)):
        read(tmp_path / "m.toml", KEYS)


def test_the_file_is_asked_and_flags_win(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mobileprune.toml").write_text(
        f'model = "{TINY}:tiny"\nbudget = ["1MMACs"]\nimage-size = 16\nprobes = 5\nepochs = 3\n'
        "[model-arg]\nblocks = 2\n"
    )
    plan = call("optimize", "--dry-run", "--json", "--epochs", "7", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    found = json.loads(plan.stdout)
    work = {one["stage"]: one["what"] for one in found["work"]}
    assert "18 networks" in work["score"] and "at most 5 scales" in work["probe"] and "7 epochs" in work["finetune"]
    assert "tiny" in found["model"] and "16 px" in found["data"] and found["budgets"] == ["1MMACs"]
    assert "options from mobileprune.toml: budgets, epochs" in plan.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mobileprune.toml"]  # a dry run leaves nothing
    (tmp_path / "mobileprune.toml").write_text('probes = "many"')
    wrong = call("optimize", "--budget", "50%", cwd=tmp_path)
    assert wrong.returncode == 2 and "'many' is not a valid integer" in wrong.stderr


def found_probes(run: Path) -> int:
    lines = (run / "journal.jsonl").read_text().splitlines()
    return len({entry["key"] for entry in map(json.loads, lines) if entry["kind"] == "probe"})


def test_a_dry_run_of_a_finished_run_has_little_to_do(call: Call, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
    done = call("optimize", "--run", finished, "--dry-run", "--json", *QUESTION)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    state = {work["stage"]: work["done"] for work in found["work"]}
    assert all(state.values())
    assert found["run"].endswith("(goes on)")
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"} == before
    other = call("optimize", "--run", finished, "--dry-run", "--json", *QUESTION, "--budget", "2MParams")
    work = {one["stage"]: one for one in json.loads(other.stdout)["work"]}
    assert not any(work[stage]["done"] for stage in ("probe", "solve", "finetune"))
    assert work["score"]["done"]
    made = found_probes(finished)
    assert f"at most {made + 2} scales" in work["probe"]["what"] and f"{made} done" in work["probe"]["what"]


def test_init_writes_what_flags_say_and_refuses_to_replace(call: Call, tmp_path: Path) -> None:
    done = call("init", "--budget", "12ms", "--model", "resnet56", "--epochs", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = tomllib.loads((tmp_path / "mobileprune.toml").read_text())
    assert data == {"model": "resnet56", "budget": ["12ms"], "epochs": 3}
    again = call("init", "--budget", "10ms", cwd=tmp_path)
    assert again.returncode == 2 and "--force" in again.stderr
    assert call("init", "--budget", "nonsense", "--force", cwd=tmp_path).returncode == 2
    assert tomllib.loads((tmp_path / "mobileprune.toml").read_text()) == data


def on_terminal(arguments: list[str], answers: str = "", **options: object) -> str:
    """What a command writes to a terminal; ``answers`` are typed into it."""
    ours, theirs = pty.openpty()
    code = [sys.executable, "-c", "from mobileprune.cli import main; main(prog_name='mobileprune')", *arguments]
    process = subprocess.Popen(code, stdin=theirs, stdout=theirs, stderr=theirs, **options)  # type: ignore[call-overload]
    os.close(theirs)
    os.write(ours, answers.encode())
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait(timeout=60) == 0, text.decode()
    return text.decode()


def test_init_asks_on_a_terminal(tmp_path: Path) -> None:
    text = on_terminal(["init"], "\n\n\n\n40% 2MB\n\n", cwd=tmp_path)
    assert "Which model" in text and "go on with: mobileprune optimize" in text
    data = tomllib.loads((tmp_path / "mobileprune.toml").read_text())
    assert data["budget"] == ["40%", "2MB"] and data["model"] == "resnet20" and "checkpoint" not in data


@pytest.mark.parametrize("columns", [40, 80])
def test_narrow_terminals_and_no_color_are_respected(columns: int) -> None:
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    plain = on_terminal(["doctor"], env={**environment, "NO_COLOR": "1"})
    assert not coloured.search(plain)
    bare = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", plain)
    assert max(len(line) for line in bare.splitlines()) <= columns
    assert coloured.search(on_terminal(["doctor"], env={k: v for k, v in environment.items() if k != "NO_COLOR"}))


# Completion ---------------------------------------------------------------------------------------------------------


def test_installing_completion_twice_writes_one_line(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("alias x=y")
    for _ in range(2):
        install_script("bash", script_of(main, "bash"), tmp_path)
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert lines[0] == "alias x=y" and len(lines) == 2
    assert [p.name for p in install_script("fish", "x", tmp_path)] == ["mobileprune.fish"]
    assert len(install_script("zsh", "x", tmp_path)) == 2


@pytest.fixture
def completing(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has mobileprune on the PATH; the home folder is empty."""
    program = tmp_path / "bin" / "mobileprune"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom mobileprune.cli import main\nmain(prog_name='mobileprune')\n")
    program.chmod(0o755)
    return {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}


def require(shell: str) -> None:
    if shutil.which(shell) is None:
        missing = pytest.fail if os.environ.get("MOBILEPRUNE_REQUIRE_PEERS") else pytest.skip
        missing(f"there is no {shell} here: install Debian's package {shell}")


@pytest.mark.parametrize(
    ("words", "expected"), [(["opt"], "optimize"), (["optimize", "--prob"], "--probes"), (["completion", "z"], "zsh")]
)
def test_a_real_bash_completes(completing: dict[str, str], tmp_path: Path, words: list[str], expected: str) -> None:
    install_script("bash", script_of(main, "bash"), tmp_path)
    typed = " ".join(shlex.quote(word) for word in ["mobileprune", *words])
    asked = f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}"
    code = f". ~/.bashrc; {asked}; _mobileprune_completion mobileprune; echo ${{COMPREPLY[*]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=completing, timeout=60)
    assert expected in done.stdout.split(), done.stderr


def test_a_real_fish_completes(completing: dict[str, str], tmp_path: Path) -> None:
    require("fish")
    install_script("fish", script_of(main, "fish"), tmp_path)
    code = 'complete -C "mobileprune optimize --prob"'
    done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, env=completing, timeout=60)
    assert "--probes" in done.stdout.split(), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_ones_that_the_shell_reads(tmp_path: Path, shell: str) -> None:
    require(shell)
    (tmp_path / "script").write_text(script_of(main, shell))
    assert subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True).returncode == 0


# Words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_help_has_an_example_that_parses(name: str) -> None:
    text = main.commands[name].help or ""
    lines = [line.replace("Example:", "").strip() for line in text[text.find("Example:") :].splitlines()]
    examples = [shlex.split(line, comments=True) for line in lines if line.startswith("mobileprune ")]
    assert examples, f"{name} has no example"
    for words in examples:
        assert words[1] == name
        main.commands[name].make_context(name, words[2:])  # raises where an option or a choice is unknown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["optimise"], "Did you mean 'optimize'?"),
        (["optimize", "--budgets", "3"], "Did you mean '--budget'?"),
        (["optimize", "--budget", "50%", "--device", "hots"], "did you mean host"),
        (["optimize", "--budget", "50%", "--data", "digts"], "did you mean digits"),
        (["optimize", "--budget", "50%", "--model", "resnet5"], "did you mean resnet"),
        (["completion", "bsh"], "'bash'"),
    ],
)
def test_near_names_are_suggested(call: Call, tmp_path: Path, words: list[str], hint: str) -> None:
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert hint in done.stderr
