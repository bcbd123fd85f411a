"""Fills the command line's reference from the commands themselves, so that it cannot be out of date."""

from __future__ import annotations

from typing import Any

import click

_MARK = "{{ commands }}"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with every page's text."""
    return markdown.replace(_MARK, reference()) if _MARK in markdown else markdown


def reference() -> str:
    """Every command's help, as ``mobileprune COMMAND --help`` prints it."""
    from mobileprune.cli import main

    parts = []
    root = click.Context(main, info_name="mobileprune", terminal_width=100)
    for name in main.list_commands(root):
        command = main.get_command(root, name)
        assert command is not None
        with click.Context(command, info_name=name, parent=root, terminal_width=100) as context:
            parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
