"""``mobileprune completion``: Tab completes commands, options and names."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mobileprune.errors import UsageError

_SHELLS = ("bash", "zsh", "fish")
_MARK = "# mobileprune completion"
_ZSH_HEAD = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }\n"


@click.command(short_help="Install shell completion.")
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@click.option("--install", is_flag=True, help="Write it where the shell finds it, instead of printing it.")
@click.pass_context
def completion(ctx: click.Context, shell: str | None, install: bool) -> None:
    """Print the completion script of SHELL (by default the one you use), or install it for your user.

    \b
    Example:  mobileprune completion --install bash
    """
    shell = shell or _current_shell()
    script = script_of(ctx.find_root().command, shell)
    if not install:
        click.echo(script)
        return
    for path in install_script(shell, script, Path.home()):
        click.echo(f"written: {path}")
    click.echo(f"open a new {shell}, then: mobileprune <Tab>")


def script_of(command: click.Command, shell: str) -> str:
    """The script by which ``shell`` asks this program what may come next."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    body = kind(command, {}, "mobileprune", "_MOBILEPRUNE_COMPLETE").source().strip() + "\n"
    return _ZSH_HEAD + body if shell == "zsh" else body


def install_script(shell: str, script: str, home: Path) -> list[Path]:
    """Write the script under ``home`` and, for bash and zsh, one line that reads it into the rc file; what changed."""
    from mobileprune.run import write_text

    if shell == "fish":
        path = home / ".config" / "fish" / "completions" / "mobileprune.fish"
        write_text(path, script)
        return [path]
    path = home / ".local" / "share" / "mobileprune" / f"completion.{shell}"
    write_text(path, script)
    start = home / f".{shell}rc"
    before = start.read_text(encoding="utf-8") if start.exists() else ""
    if _MARK in before:
        return [path]
    gap = "" if not before or before.endswith("\n") else "\n"
    with start.open("a", encoding="utf-8") as file:  # appended: the file is the user's own, and may be a link
        file.write(f'{gap}[ -f "{path}" ] && . "{path}"  {_MARK}\n')
    return [path, start]


def _current_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in _SHELLS:
        raise UsageError(f"which shell is {name or 'used'}? name one of {', '.join(_SHELLS)}")
    return name
