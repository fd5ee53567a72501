"""`get_context`: what a rank knows about itself.

It is the same under icelaunch_nb, under plain torchrun and inline in the kernel.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from icelaunch_nb.errors import IcelaunchError
from icelaunch_nb.events import Events
from icelaunch_nb.launching.rank_environment import ATTEMPT_VARIABLE, DEVICE_VARIABLE
from icelaunch_nb.rundir.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from icelaunch_nb.rundir.metrics import Metrics
from icelaunch_nb.rundir.paths import RUN_DIR_VARIABLE, RunDir
from icelaunch_nb.rundir.step_board import mark_over
from icelaunch_nb.worker.steps import Loop, Steps, steps_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """This rank.

    Attributes:
        rank: Global rank, 0 to ``world_size - 1``.
        local_rank: Rank on this machine.
        world_size: Number of ranks in all.
        local_world_size: Number of ranks on this machine.
        role: The config's ``role``.
        restart_count: How often the ranks have been restarted, 0 in the first attempt.
        max_restarts: How often they may be.
        run_id: The run's id.
        events: The run's events, or a set of this process's own under plain torchrun.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    role: str
    restart_count: int
    max_restarts: int
    run_id: str
    events: Events

    @property
    def device(self) -> torch.device:
        """This rank's device. Where it is a GPU, it is CUDA's current device."""
        import torch

        name = os.environ.get(DEVICE_VARIABLE)
        if name is None:
            name = f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu"
        return torch.device(name)

    def steps(self, iterable: Iterable[T], total: int | None = None) -> Loop[T]:
        """Goes through `iterable`, counts progress, and acts on requests between two steps.

            for epoch in ctx.steps(range(3)):
                for batch in ctx.steps(loader):
                    ...

        Pause, stop and checkpoint requests act before the same step on all ranks of this machine,
        whenever they come, in loops with and without collectives. `icelaunch_nb.worker.steps` says
        how, and why it holds. All ranks must go through the same loops. With several nodes, a
        request acts on the machine whose board it is set on.

        A pause waits. A stop ends this loop and each later one, so that the function goes on after
        them and returns its value. In nested loops the steps are those of the innermost one. Each
        loop has its own progress bar, which the machine's first rank moves.

        Args:
            iterable: What to go through.
            total: How many items there are; None: its `len`, where it has one.

        Returns:
            An iterator of the items.
        """
        return Loop(self._steps.loop(iterable, total), iterable, total)

    @property
    def step(self) -> int:
        """Number of the step, from 0, counted by `steps` through all innermost loops and epochs."""
        return self._steps.step

    def should_checkpoint(self) -> bool:
        """Whether to save a checkpoint now: true once per request, on every rank at the same step.

        ``events.finished_save_checkpoint`` is set when all ranks have gone on to their next step.
        In a loop without `steps`, this rank acts on pauses and requests in this call.
        """
        return self._steps.should_checkpoint()

    def checkpoint_due(self) -> bool:
        """Whether `should_checkpoint` would be true.

        For code that has something else save a checkpoint, and learns later whether it did.
        """
        return self._steps.protocol.checkpoint_due()

    def checkpoint_saved(self, path: str | os.PathLike[str]) -> None:
        """Records where a checkpoint lies.

        After a restart this is `last_checkpoint`. The kernel sees it too.

        Args:
            path: The checkpoint's file or folder.
        """
        saved = Checkpoint(
            path=os.path.abspath(os.fspath(path)), time=time.time(), rank=self.rank, step=self.step
        )
        if self._run_dir is None:
            self.__dict__["_saved"] = saved
        else:
            write_checkpoint(self._run_dir, saved)

    @property
    def last_checkpoint(self) -> str | None:
        """The path of the newest `checkpoint_saved`; None: there is none yet.

        It counts the calls of all ranks of this machine, in all attempts.
        """
        saved: Checkpoint | None = (
            self.__dict__.get("_saved") if self._run_dir is None else read_checkpoint(self._run_dir)
        )
        return saved.path if saved else None

    def report(self, /, *, step: Any = None, **metrics: Any) -> None:
        """Records metrics of a step (``report(loss=loss, lr=lr)``) for the panel and `Run.metrics`.

        Under plain torchrun it does nothing.

        Args:
            step: Number of the step; None: `Context.step`.
            **metrics: Numbers, also as arrays or tensors with one element. The call waits for a
                tensor on a GPU.

        Raises:
            ValueError: A metric is named ``attempt``, ``rank`` or ``time``, which every row has
                already.
            TypeError: A metric is no number, or the step is no whole number.
        """
        if self._metrics is not None:
            self._metrics.add(self.rank, self.step if step is None else step, metrics)

    @functools.cached_property
    def _run_dir(self) -> RunDir | None:
        path = os.environ.get(RUN_DIR_VARIABLE)
        return RunDir(Path(path)) if path else None

    @functools.cached_property
    def _attempt(self) -> int:
        return int(os.environ.get(ATTEMPT_VARIABLE, "0"))

    @functools.cached_property
    def _steps(self) -> Steps:
        path = self._run_dir.steps(self._attempt) if self._run_dir else None
        return steps_of(
            path,
            self.events._board,
            self.local_rank,
            self.local_world_size,
            writes_bars=self.local_rank == 0,
        )

    @functools.cached_property
    def _metrics(self) -> Metrics | None:
        return (
            Metrics(self._run_dir.rank(self._attempt, self.local_rank).metrics)
            if self._run_dir
            else None
        )

    def __getstate__(self) -> dict[str, Any]:
        # The fields alone: what is cached belongs to this process.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __repr__(self) -> str:
        return (
            f"<Context rank {self.rank} of {self.world_size}, "
            f"attempt {self.restart_count}, run {self.run_id}>"
        )


def get_context() -> Context:
    """The context of this rank.

    It works in a rank of this package, under torchrun (from its environment variables) and in a
    launch with ``inline=True``.

    Raises:
        IcelaunchError: This process is no rank.
    """
    env = os.environ
    if "RANK" not in env or "WORLD_SIZE" not in env:
        raise IcelaunchError(
            "this process is no rank: "
            "get_context() works in a function that was launched, or under torchrun"
        )
    key = (
        os.getpid(),
        env["RANK"],
        env.get("TORCHELASTIC_RUN_ID"),
        env.get("TORCHELASTIC_RESTART_COUNT"),
        env.get(RUN_DIR_VARIABLE),
    )
    if _current.get("key") != key:
        _current.update(key=key, context=_from_environment())
    return _current["context"]


_current: dict[str, Any] = {}


def reset() -> None:
    """Drops the context that a fork of another rank has left in this process."""
    _current.clear()


@functools.cache
def _finish_at_exit() -> None:
    """Calls `finish` at exit: in a rank that is a program, nothing else calls it."""
    atexit.register(finish)


def finish() -> None:
    """Records that this rank's function is over, so that no rank waits for it at a pause.

    It does so too where the function never used steps.
    """
    with contextlib.suppress(Exception):  # the run directory may be gone
        # A rank leads its session. Its children must not record this for it.
        if os.getsid(0) == os.getpid():
            if not _current and RUN_DIR_VARIABLE in os.environ and _finish_without_context():
                return
            context = get_context()
            if context.local_world_size > 1 or "_steps" in context.__dict__:
                context._steps.protocol.finish()


def _finish_without_context() -> bool:
    """Records the end of a rank whose code never used its context.

    This takes a tenth of the time that making a context takes.

    Returns:
        Whether nothing else needs to be recorded.
    """
    env = os.environ
    ranks, attempt = int(env["LOCAL_WORLD_SIZE"]), int(env[ATTEMPT_VARIABLE])
    return ranks == 1 or mark_over(
        RunDir(Path(env[RUN_DIR_VARIABLE])).steps(attempt), int(env["LOCAL_RANK"]), ranks
    )


def _from_environment() -> Context:
    env = os.environ
    rank = int(env["RANK"])
    run_dir = env.get(RUN_DIR_VARIABLE)
    if run_dir:
        _finish_at_exit()
    return Context(
        rank=rank,
        local_rank=int(env.get("LOCAL_RANK", rank)),
        world_size=int(env["WORLD_SIZE"]),
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
        role=env.get("ROLE_NAME", "default_role"),
        restart_count=int(env.get("TORCHELASTIC_RESTART_COUNT", 0)),
        max_restarts=int(env.get("TORCHELASTIC_MAX_RESTARTS", 0)),
        run_id=env.get("TORCHELASTIC_RUN_ID", "none"),
        events=Events.of_run(run_dir) if run_dir else Events(),
    )
