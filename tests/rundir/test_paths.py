"""The run directory: its paths, its permissions, and a journal that is read while it is written."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb import ConfigError, Failure, IcelaunchError, LaunchConfig
from icelaunch_nb.rundir.journal import JournalWriter, read_events
from icelaunch_nb.rundir.journal_events import (
    AgentStarted,
    AttemptStarted,
    Ended,
    Event,
    FailedRank,
    RankEntry,
    RanksFailed,
)
from icelaunch_nb.rundir.paths import (
    RunDir,
    default_log_dir,
    default_log_dirs,
    is_default_log_dir,
    make_run_dir,
)
from icelaunch_nb.rundir.spec import read_spec
from icelaunch_nb.system import userdirs
from icelaunch_nb.system.files import write_atomically

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def tmp_is_here(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Layout and permissions.


def test_log_files_lie_where_torch_elastic_puts_them(tmp_path):
    rank = RunDir(tmp_path).rank(2, 1)
    assert [str(p.relative_to(tmp_path)) for p in (rank.stdout, rank.stderr, rank.error)] == [
        "attempt_2/1/stdout.log",
        "attempt_2/1/stderr.log",
        "attempt_2/1/error.json",
    ]


def test_only_the_owner_can_read_the_directory_and_its_files(tmp_path, no_umask):
    run_dir = make_run_dir(str(tmp_path / "logs"), "run")
    run_dir.write(run_dir.spec, "{}")
    JournalWriter(run_dir.journal).write(AgentStarted(pid=1, started=1.0))
    assert mode(tmp_path / "logs") == 0o700
    assert mode(run_dir.path) == 0o700
    for path in (run_dir.spec, run_dir.journal, run_dir.control, run_dir.agent_alive):
        assert mode(path) == 0o600, path
    assert stat.S_ISFIFO(run_dir.control.stat().st_mode) and stat.S_ISFIFO(
        run_dir.agent_alive.stat().st_mode
    )


def test_others_cant_write_to_the_new_parents_of_log_dir(tmp_path, no_umask):
    make_run_dir(str(tmp_path / "a" / "b"), "run")
    assert mode(tmp_path / "a") & 0o022 == 0


def test_an_existing_log_dir_keeps_its_mode(tmp_path):
    (tmp_path / "logs").mkdir(mode=0o755)
    make_run_dir(str(tmp_path / "logs"), "run")
    assert mode(tmp_path / "logs") == 0o755


def test_an_atomic_write_replaces_the_file_and_leaves_no_draft(tmp_path):
    write_atomically(tmp_path / "x", b"old")
    write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


# Names.


@pytest.mark.parametrize(
    "run_id",
    [
        "",
        ".",
        "..",
        "../../x",
        "/etc/passwd",
        "a/b",
        "a\nb",
        'it\'s "quoted"',
        "ü→漢字🙂",
        "x" * 300,
        "-rf *",
        "~",
        "$(id)",
        "a b\tc",
        "\x1b[31m",
        "CON",
        ".hidden",
        "a" * 59 + "/" * 10,
    ],
)
def test_hostile_run_ids_name_a_directory_right_below_log_dir(run_id, tmp_path):
    run_dir = make_run_dir(str(tmp_path), run_id)
    assert run_dir.path.parent == tmp_path
    assert os.listdir(tmp_path) == [run_dir.path.name]
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,80}", run_dir.path.name)


def test_a_plain_run_id_can_be_read_in_the_name(tmp_path):
    assert make_run_dir(str(tmp_path), "my-run_1.2").path.name.startswith("my-run_1.2_")


def test_two_runs_with_the_same_id_get_two_directories(tmp_path):
    assert make_run_dir(str(tmp_path), "x").path != make_run_dir(str(tmp_path), "x").path


@pytest.mark.parametrize(
    "base",
    ["/proc/nope", "/dev/null/x", "{tmp}/" + "x" * 300, "{tmp}/\ud800"],
    ids=["proc", "file", "long", "surrogate"],
)
def test_a_directory_that_cant_be_made_is_a_config_error(base, tmp_path):
    with pytest.raises(ConfigError) as caught:
        make_run_dir(base.format(tmp=tmp_path), "x")
    assert caught.value.field == "log_dir"


# The default directory.


def test_only_the_user_can_enter_the_default_directory(tmp_is_here, no_umask):
    assert default_log_dir() == tmp_is_here / f"icelaunch_nb-{os.geteuid()}"
    assert mode(default_log_dir()) == 0o700
    assert make_run_dir(None, "x").path.parent == default_log_dir()


def test_an_open_default_directory_is_closed_to_others(tmp_is_here):
    default_log_dir().chmod(0o777)
    assert mode(default_log_dir()) == 0o700


@pytest.mark.parametrize(
    "planted",
    [pytest.param("another user's", marks=as_root), "a link", "a dangling link", "a file"],
)
def test_a_planted_default_directory_is_left_alone_and_another_is_used(planted, tmp_is_here):
    default = tmp_is_here / f"icelaunch_nb-{os.geteuid()}"
    if planted == "a file":
        default.write_text("")
    elif planted == "another user's":
        default.mkdir()
        os.chown(default, 12345, 12345)
    else:
        (tmp_is_here / "elsewhere").mkdir()
        default.symlink_to(tmp_is_here / ("elsewhere" if planted == "a link" else "nowhere"))
    other = default_log_dir()
    assert other.parent == tmp_is_here and other != default and mode(other) == 0o700
    assert default_log_dir() == other, "the next launch finds it again"
    assert default_log_dirs() == [other]
    assert is_default_log_dir(other) and not is_default_log_dir(tmp_is_here)
    assert make_run_dir(None, "x").path.parent == other


@as_root
def test_a_second_default_directory_of_another_user_is_skipped(tmp_is_here):
    for name in (f"icelaunch_nb-{os.geteuid()}", f"icelaunch_nb-{os.geteuid()}-aaaa"):
        (tmp_is_here / name).mkdir()
        os.chown(tmp_is_here / name, 12345, 12345)
    assert default_log_dir() not in list(tmp_is_here.glob("*-aaaa"))
    assert default_log_dir() == default_log_dir()


@pytest.mark.parametrize("gone", ["{tmp}/gone", "/proc", "{tmp}/file"])
def test_the_next_temporary_directory_is_used_if_the_first_cant_be(gone, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "next").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", gone.format(tmp=tmp_path))
    monkeypatch.setattr(userdirs, "_SHARED", (str(tmp_path / "next"),))
    assert default_log_dir() == tmp_path / "next" / f"icelaunch_nb-{os.geteuid()}"
    assert default_log_dirs() == [default_log_dir()]


def test_the_error_names_log_dir_if_no_temporary_directory_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(userdirs, "_SHARED", ())
    with pytest.raises(ConfigError, match="set log_dir") as caught:
        default_log_dir()
    assert caught.value.field == "log_dir"


def test_paths_of_sockets_are_short_enough(monkeypatch, request):
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(short))
    for length in range(30, 130):
        folder = Path(str(short / "x").ljust(length, "x"))
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        socket_dir = Path(userdirs.make_socket_dir())
        if len(str(folder)) < 50:
            assert socket_dir.parent == folder
        longest = socket_dir / "pymp-01234567" / "listener-01234567"
        longest.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(longest))
        assert mode(socket_dir) == 0o700
        shutil.rmtree(socket_dir)


# No home.


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_without_a_home_the_state_directory_is_none_or_absolute(home, monkeypatch):
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)

    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    found = userdirs.state_dir()
    assert found is None or found.is_absolute()
    if home is None:
        assert found is None
        with pytest.raises(ConfigError, match="no home directory"):
            LaunchConfig(1, 1, 1, log_dir="~/runs").validate()


# Owners.


def test_a_directory_of_the_user_is_accepted(tmp_path):
    assert RunDir.at(tmp_path).path == tmp_path


@as_root
def test_a_directory_of_another_user_is_refused_even_for_root(tmp_path):
    (tmp_path / "x").mkdir()
    os.chown(tmp_path / "x", 12345, 12345)
    with pytest.raises(IcelaunchError, match="belongs to user 12345"):
        RunDir.at(tmp_path / "x")


@as_root
def test_a_spec_of_another_user_is_not_read(tmp_path):
    run_dir = make_run_dir(str(tmp_path), "x")
    run_dir.write(run_dir.spec, "{}")
    os.chown(run_dir.path, 12345, 12345)
    with pytest.raises(IcelaunchError, match="belongs to user 12345"):
        read_spec(run_dir)


def test_the_error_names_the_missing_directory(tmp_path):
    with pytest.raises(IcelaunchError, match="nowhere"):
        RunDir.at(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00"])
def test_a_directory_without_a_readable_spec_is_no_run(content, tmp_path):
    if content is not None:
        RunDir(tmp_path).spec.write_bytes(content)
    with pytest.raises(IcelaunchError, match="is not the directory of a run"):
        read_spec(RunDir(tmp_path))


# The journal.


def write_journal(path: Path) -> tuple[bytes, list[Event]]:
    """Writes a journal as an agent does. Returns its content and its events."""
    failure = Failure(
        0, 0, 0, 1.0, 13, "raised", 1, "ValueError", 'Überlauf\n"quoted" \u2028 \ud800', "a\nb\n"
    )
    events = [
        AgentStarted(pid=12, started=1.5),
        AttemptStarted(
            attempt=0, world_size=1, ranks=[RankEntry(rank=0, local_rank=0, pid=13, started=1.5)]
        ),
        RanksFailed(attempt=0, failures=[FailedRank.of(failure)]),
        Ended(state="FAILED", note=""),
    ]
    writer = JournalWriter(path)
    for event in events:
        writer.write(event)
        event.t = round(event.t, 4)
    return path.read_bytes(), events


def test_every_event_is_one_line_with_its_time(tmp_path):
    data, events = write_journal(tmp_path / "j")
    lines = [json.loads(line) for line in data.splitlines()]
    assert [line["event"] for line in lines] == ["agent", "attempt", "failure", "end"]
    assert all(isinstance(line["t"], float) for line in lines)
    assert data.isascii() and data.endswith(b"\n")
    assert read_events(tmp_path / "j", 0) == (events, len(data))


def test_a_journal_cut_at_any_byte_gives_whole_events_then_the_rest(tmp_path):
    data, events = write_journal(tmp_path / "recorded")
    path = tmp_path / "j"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        first, offset = read_events(path, 0)
        assert first == events[: data[:cut].count(b"\n")]
        assert read_events(path, offset) == ([], offset)
        with open(path, "ab") as file:
            file.write(data[cut:])
        rest, offset = read_events(path, offset)
        assert (first + rest, offset) == (events, len(data))


def test_a_journal_that_grows_by_single_bytes_is_read_whole(tmp_path):
    data, events = write_journal(tmp_path / "recorded")
    seen, offset = [], 0
    with open(tmp_path / "j", "wb", buffering=0) as file:
        for byte in data:
            file.write(bytes([byte]))
            new, offset = read_events(tmp_path / "j", offset)
            seen += new
    assert seen == events


def test_a_journal_that_is_not_there_yet_is_empty(tmp_path):
    assert read_events(tmp_path / "j", 0) == ([], 0)
    JournalWriter(tmp_path / "j").write(AgentStarted(pid=1, started=1.0))
    assert [event.name for event in read_events(tmp_path / "j", 0)[0]] == ["agent"]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"text"',
        b'{"no": "event"}',
        b'{"event": "torn',
        b"\xff\xfe\x00\x01",
        b"\0" * 50,
        b"{" * 30,
    ],
)
def test_lines_that_are_no_events_are_skipped(rubbish, tmp_path):
    (tmp_path / "j").write_bytes(
        b'{"t": 1, "event": "a"}\n' + rubbish + b'\n{"t": 2, "event": "b"}\n'
    )
    events, offset = read_events(tmp_path / "j", 0)
    assert [event.unknown["event"] for event in events] == ["a", "b"]
    assert offset == (tmp_path / "j").stat().st_size


EVENT = st.fixed_dictionaries(
    {
        "event": st.text(max_size=6),
        "value": st.one_of(st.none(), st.integers(), st.text(max_size=8), st.lists(st.booleans())),
    }
)


@given(
    st.lists(
        st.one_of(
            EVENT.map(lambda event: json.dumps(event).encode()),
            st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")),
        )
    ),
    st.lists(st.integers(0, 400), max_size=12),
    st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"")),
)
@settings(deadline=None)
def test_however_a_journal_grows_its_events_are_read_once_and_in_order(
    tmp_path_factory, lines, cuts, unfinished
):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    data = b"".join(line + b"\n" for line in lines) + unfinished
    found, offset, written = [], 0, 0
    for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        with open(path, "ab") as file:
            file.write(data[written:cut])
        written = cut
        events, offset = read_events(path, offset)
        found += events
    assert found == read_events(path, 0)[0]
    assert offset == len(data) - len(unfinished)
    whole = [json.loads(line) for line in lines if line.startswith(b"{") and b'"value"' in line]
    assert [event.unknown for event in found if "value" in event.unknown] == whole
