"""Finds objects of training frameworks that keep the launching process's world size of 1.

In a rank, each of them would train by itself. Transformers' TrainingArguments, for example, look
for the process group once, when they are made.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

from icelaunch_nb.errors import SingleProcessWarning
from icelaunch_nb.pickling import captures, explain


def _is_single_accelerate(state: Any) -> bool:
    return vars(state).get("num_processes") == 1


def _is_single_transformers(arguments: Any) -> bool:
    state = vars(arguments).get("distributed_state")
    return state is not None and _is_single_accelerate(state)


def _is_single_lightning(trainer: Any) -> bool:
    return trainer.world_size == 1


_CHECKS: dict[tuple[str, str], Callable[[Any], bool]] = {
    ("accelerate.state", "PartialState"): _is_single_accelerate,
    ("accelerate.state", "AcceleratorState"): _is_single_accelerate,
    ("transformers.training_args", "TrainingArguments"): _is_single_transformers,
    ("lightning.pytorch.trainer.trainer", "Trainer"): _is_single_lightning,
    ("pytorch_lightning.trainer.trainer", "Trainer"): _is_single_lightning,
    ("lightning.fabric.fabric", "Fabric"): _is_single_lightning,
    ("lightning_fabric.fabric", "Fabric"): _is_single_lightning,
}


class Finder:
    """Is called with each object that is pickled, and collects the types made for one process.

    Attributes:
        found: The types, in the order in which they were found.
    """

    def __init__(self) -> None:
        self.found: list[type] = []
        self._check_of_type: dict[type, Callable[[Any], bool] | None] = {}
        self._checks = {
            cls: check
            for (module, name), check in _CHECKS.items()
            if isinstance(cls := getattr(sys.modules.get(module), name, None), type)
        }

    def __bool__(self) -> bool:
        """Whether a framework is imported whose objects can be found."""
        return bool(self._checks)

    def __call__(self, obj: Any) -> None:
        cls = type(obj)
        if cls not in self._check_of_type:
            self._check_of_type[cls] = next(
                (self._checks[base] for base in cls.__mro__ if base in self._checks), None
            )
        check = self._check_of_type[cls]
        if check is not None and cls not in self.found:
            try:
                single = check(obj)
            # Another version of the framework keeps its state elsewhere.
            except Exception:
                return
            if single:
                self.found.append(cls)


def warn(
    finder: Finder,
    functions: list[types.FunctionType],
    roots: dict[str, Any],
    ranks: int,
    *,
    stacklevel: int,
) -> None:
    """Warns of each object that was made for a single process and goes to several ranks.

    Args:
        finder: The finder that has seen the objects of the call.
        functions: The functions of the call.
        roots: The call's arguments, by the names that messages use.
        ranks: The greatest possible number of ranks.
        stacklevel: As for ``warnings.warn``.
    """
    if not finder.found or ranks == 1:
        return
    names = {
        f"`{name}` ({_type_name(value, found)})"
        for name, value in {**roots, **captures.captures(functions)}.items()
        if (found := _find_types(value))
    }
    for name in sorted(names) or [f"an object of the call ({finder.found[0].__name__})"]:
        warnings.warn(
            f"{name} was made in this process, where the world size is 1, and keeps that: "
            f"each of the {ranks} ranks would train by itself; "
            "make it inside the function",
            SingleProcessWarning,
            stacklevel=stacklevel + 1,
        )


def _type_name(value: Any, found: list[type]) -> str:
    """The type's name for a message. For a builtin container, the type that was found in it."""
    return (found[0] if type(value).__module__ == "builtins" else type(value)).__name__


def _find_types(value: Any) -> list[type]:
    finder = Finder()
    explain.visit_objects(value, finder)
    return finder.found
