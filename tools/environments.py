"""Environments for packages that cannot share mobileprune's: each a venv of its own under a cache folder."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """One venv.

    python: its interpreter, HOME/bin/python. packages: as pip takes them. check: code that fails unless all is there.
    """

    python: Path
    packages: tuple[str, ...]
    check: str

    def works(self) -> bool:
        """Whether the environment is there and whole."""
        return (
            self.python.is_file()
            and subprocess.run([self.python, "-I", "-c", self.check], capture_output=True).returncode == 0
        )

    def make(self, base: str) -> None:
        """Have it, made with the interpreter ``base`` where it is not there. SystemExit where it does not work then.

        It is built beside its place and renamed: a stopped run leaves nothing that looks finished.
        """
        if self.works():
            return
        home = self.python.parent.parent
        part = home.with_name(f"{home.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([base, "-m", "venv", part], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages]
        subprocess.run([part / "bin" / "python", *install], check=True)
        shutil.rmtree(home, ignore_errors=True)
        part.rename(home)
        if not self.works():
            raise SystemExit(f"{self.python} was made but does not work; try another --python. It ran: {self.check}")
