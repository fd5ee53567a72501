"""The agent's control thread, in a process of its own: requests, SIGTERM and the host's end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from icelaunch_nb.rundir import agent_requests
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import read_events
from icelaunch_nb.rundir.journal_events import Ended, Stopping
from icelaunch_nb.rundir.paths import make_run_dir
from icelaunch_nb.rundir.run_state import HOST_ENDED, ORPHANS_GRACE

# An agent whose main thread is stuck: it says when it shall stop and kill, and does neither.
CODE = """
import select, signal, sys, time
from pathlib import Path
from icelaunch_nb.agent.control import ControlListener
from icelaunch_nb.agent.event_recorder import EventRecorder
from icelaunch_nb.agent.hang_detector import HangDetector
from icelaunch_nb.rundir.events_board import Board
from icelaunch_nb.rundir.journal import JournalWriter
from icelaunch_nb.rundir.paths import RunDir

run_dir = RunDir(Path(sys.argv[1]))
board, journal = Board(run_dir.board), JournalWriter(run_dir.journal)
recorder = EventRecorder(run_dir, board, journal)
detector = HangDetector(run_dir, board, recorder, None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
listener = ControlListener(run_dir, board, journal, recorder, detector, int(sys.argv[2]))
listener.start()
print("ready", flush=True)
select.select([listener.stop_fd], [], [])
print(f"stop {float(listener.grace)} {listener.reason}", flush=True)
select.select([listener.kill_fd], [], [])
print("kill", flush=True)
while True:
    time.sleep(600)
"""


class Agent:
    """The process, its run directory, and the writing end of the pipe that stands for its host."""

    def __init__(self, folder) -> None:
        self.run_dir = make_run_dir(str(folder), "r")
        self.board = Board()
        self.board.move_to(self.run_dir.board)
        parent, self.host = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(self.run_dir.path), str(parent)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[parent],
        )
        os.close(parent)
        assert self.line() == "ready"

    def line(self) -> str:
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, request: agent_requests.Request) -> None:
        """Sends a request, and waits until it is carried out."""
        request.number = random.getrandbits(60) + 1
        assert agent_requests.send(self.run_dir, request)
        while not self.board.is_done(request.number):
            assert self.process.poll() is None, self.process.stderr.read()

    def end_host(self) -> None:
        os.close(self.host)
        self.host = -1

    def end(self) -> str:
        """Kills the process. Returns what it has logged."""
        self.process.kill()
        return self.process.communicate()[1]

    def recorded(self, kind: type) -> list:
        events, _ = read_events(self.run_dir.journal, 0)
        return [event for event in events if isinstance(event, kind)]


@pytest.fixture
def agent(tmp_path):
    agent = Agent(tmp_path)
    yield agent
    agent.end()
    if agent.host >= 0:
        agent.end_host()


def test_requests_set_and_clear_the_flags_in_their_order(agent):
    agent.ask(agent_requests.Pause())
    assert agent.board.is_set("pause")
    agent.ask(agent_requests.Resume())
    assert agent.board.is_set("resume") and not agent.board.is_set("pause")
    agent.ask(agent_requests.SaveCheckpoint())
    assert agent.board.is_set("trigger_save_checkpoint")
    assert not agent.board.is_set("stop_all_tasks")


def test_damaged_requests_are_logged_up_to_a_number_and_the_next_one_is_carried_out(agent):
    fd = os.open(agent.run_dir.control, os.O_WRONLY)
    for _ in range(80):
        os.write(fd, b'{"request": "fly"}\n{"request": "stop", "grace": -1}\n\xff\xfe\n')
    os.close(fd)
    agent.ask(agent_requests.Pause())
    assert agent.board.is_set("pause") and not agent.board.is_set("stop_all_tasks")
    log = agent.end()
    assert log.count(" is passed over: ") == 50
    assert "from here on, such lines are passed over without a word" in log.splitlines()[-1]


def test_sigterm_is_a_stop(agent):
    agent.process.send_signal(signal.SIGTERM)
    assert agent.line() == f"stop {ORPHANS_GRACE} its agent got SIGTERM"
    agent.ask(agent_requests.Pause())  # after this, the stop is recorded
    assert agent.board.is_set("stop_all_tasks")
    (stopping,) = agent.recorded(Stopping)
    assert (stopping.grace, stopping.reason) == (ORPHANS_GRACE, "its agent got SIGTERM")


def test_the_end_of_the_host_is_a_stop(agent):
    agent.end_host()
    assert agent.line() == f"stop {ORPHANS_GRACE} {HOST_ENDED}"


def test_a_detached_run_outlives_its_host(agent):
    agent.ask(agent_requests.Detach())
    agent.end_host()
    agent.ask(agent_requests.Pause())
    assert not agent.board.is_set("stop_all_tasks") and agent.recorded(Stopping) == []


def test_a_run_whose_directory_is_removed_stops(agent):
    shutil.rmtree(agent.run_dir.path)
    assert agent.line() == f"stop {ORPHANS_GRACE} its directory is gone"


def test_a_second_stop_can_shorten_the_grace_and_never_lengthens_it(agent):
    agent.ask(agent_requests.Stop(grace=10_000, reason="first"))
    agent.ask(agent_requests.Stop(grace=20_000, reason="longer"))
    agent.ask(agent_requests.Stop(grace=0.01, reason="shorter"))
    assert [agent.line(), agent.line()] == ["stop 10000.0 first", "kill"]
    assert [stop.reason for stop in agent.recorded(Stopping)] == ["first", "shorter"]


def test_an_agent_that_is_stuck_records_the_end_and_ends(agent):
    agent.ask(agent_requests.Kill())
    assert [agent.line(), agent.line()] == ["stop 0.0 it was asked to", "kill"]
    assert agent.process.wait(60) == 1
    (ended,) = agent.recorded(Ended)
    assert (ended.state, ended.note) == ("STOPPED", "it was asked to")
