"""The doors between rooms: what a new process is told to run. The rooms themselves never import each other."""

from __future__ import annotations

from multiprocessing.connection import Connection

from icelaunch_nb.tasks import RankTask


def run_agent(tasks: Connection, spare_ranks: int) -> None:
    """From the host into an agent, which gets its task through `tasks` once there is one."""
    from icelaunch_nb.agent import main

    main.main(tasks, spare_ranks)


def run_rank(task: RankTask | Connection) -> None:
    """From the agent into a rank, which has its task, or gets it once there is one."""
    from icelaunch_nb.worker import main

    main.main(task)


def nothing() -> None:
    """Proves that the forkserver answers."""
