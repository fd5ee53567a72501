"""Reads the cells: ``cells/<topic>.py``, one idiom below each line ``# %% title``.

A cell defines ``work()``. Lines that begin with ``#=`` say what it returns or raises:

    #= 3                       what work() returns in the kernel and in each rank: an expression,
                               which may use `rank`
    #= kernel: 3               the same for the kernel alone; — is not checked
    #= rank: [3, 4][rank]      the same for the ranks
    #= rank: raises KeyError: 'LOCAL_RANK'      what it raises there, and how its text begins
    #= ranks: 1                how many ranks; two otherwise
    #= then: expression        what undoes the cell in the kernel
    #= differs: reason         why it is not the same under torchrun
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CELLS = Path(__file__).parent / "cells"
UNCHECKED = "—"
_DIRECTIVES = ("kernel", "rank", "ranks", "then", "differs")


@dataclass(frozen=True)
class Idiom:
    """A cell as people write it, and what comes out.

    Attributes:
        topic: Name of its file.
        title: What it is about.
        code: The cell.
        kernel: What ``work()`` returns or raises in the kernel.
        rank: What it returns or raises in a rank.
        ranks: How many ranks run it.
        then: A statement that undoes in the kernel what the cell set.
        differs: Why the outcome differs under torchrun; empty where it is the same.
    """

    topic: str
    title: str
    code: str
    kernel: str
    rank: str
    ranks: int = 2
    then: str = ""
    differs: str = ""

    @property
    def id(self) -> str:
        return f"{self.topic}: {self.title}"

    def in_rank(self, rank: int) -> tuple[str, Any]:
        """What a rank must return or raise."""
        return expected(self.rank, rank)


def expected(text: str, rank: int | None = None) -> tuple[str, Any]:
    """``("returns", value)``, or ``("raises", "KeyError: 'LOCAL_RANK'")``."""
    if text.startswith("raises "):
        return "raises", text.removeprefix("raises ")
    return "returns", eval(text, {"rank": rank})


def agrees(found: tuple[str, Any], wanted: tuple[str, Any]) -> bool:
    """Whether an outcome is the wanted one. An error needs to begin with the wanted text."""
    return found[0] == wanted[0] and (
        found[1].startswith(wanted[1]) if wanted[0] == "raises" else found[1] == wanted[1]
    )


def read() -> list[Idiom]:
    """Reads all idioms."""
    return [idiom for path in sorted(CELLS.glob("*.py")) for idiom in _read(path)]


def _read(path: Path) -> list[Idiom]:
    found = []
    for part in path.read_text().split("# %% ")[1:]:
        title, _, text = part.partition("\n")
        lines = text.splitlines()
        fields: dict[str, Any] = {}
        for line in lines:
            if line.startswith("#= "):
                name, _, rest = line[3:].partition(": ")
                if name in _DIRECTIVES:
                    fields[name] = int(rest) if name == "ranks" else rest
                else:
                    fields["kernel"] = fields["rank"] = line[3:]
        assert {"kernel", "rank"} <= fields.keys(), f"{path.name}: {title}: no outcome"
        code = "\n".join(line for line in lines if not line.startswith("#= ")).strip() + "\n"
        found.append(Idiom(path.stem, title, code, **fields))
    return found
