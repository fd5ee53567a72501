"""The doors between rooms: what a new process is told to run. The rooms themselves never import each other."""

from __future__ import annotations

from icelaunch_nb.tasks import AgentTask, RankTask


def run_agent(task: AgentTask) -> None:
    """From the host into an agent."""
    from icelaunch_nb.agent import main

    main.main(task)


def run_rank(task: RankTask) -> None:
    """From the agent into a rank."""
    from icelaunch_nb.worker import main

    main.main(task)


def nothing() -> None:
    """Proves that the forkserver answers."""
