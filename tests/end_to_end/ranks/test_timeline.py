"""The timeline lies in the journal: whoever comes later, or from another process, reads it too."""

from __future__ import annotations

import time
from pathlib import Path

import icelaunch_nb as ice
from icelaunch_nb.client.run import attach_to


def work(folder: str) -> None:
    """Steps until it is stopped; rank 1 sends an event of its own."""
    from icelaunch_nb.rundir import timeline

    context = ice.get_context()
    if context.rank == 1:
        timeline.send(context._run_dir, "debugger", "waits at cell 5, line 7", rank=1)
    for _ in context.steps(range(10_000)):
        time.sleep(0.005)
        if context.should_checkpoint() and context.rank == 0:
            context.checkpoint_saved(Path(folder) / "step.pt")


def test_another_run_reads_pause_checkpoint_debugger_and_stop_later(tmp_path):
    run = ice.launch(work, args=(str(tmp_path),), nproc_per_node=2, devices="cpu")
    expected = []

    def wait_for_events(*kinds):
        expected.extend(kinds)
        deadline = time.monotonic() + 20
        while sorted(found := [event.kind for event in run._run_state.timeline]) != sorted(
            expected
        ):
            assert time.monotonic() < deadline, found
            time.sleep(0.005)

    wait_for_events("debugger")
    run.pause()
    wait_for_events("pause", "paused")
    run.resume()
    wait_for_events("resume")
    run.save_checkpoint()
    deadline = time.monotonic() + 20
    while not run.events.finished_save_checkpoint.is_set() and time.monotonic() < deadline:
        time.sleep(0.005)
    run.stop()
    run.wait(20)
    events = attach_to(run.log_dir)._run_state.timeline
    # A checkpoint may be saved before the agent notices that it was requested.
    texts = [event.text for event in events if event.text != "asked for a checkpoint"]
    assert texts[:4] == ["waits at cell 5, line 7", "asked to pause", "paused", "resumed"]
    assert texts[4].startswith(f"checkpoint saved: {tmp_path}/step.pt, step ")
    assert texts[5:] == ["asked to stop"]
    assert events[0].rank == 1
    assert [event.t for event in events] == sorted(event.t for event in events)
