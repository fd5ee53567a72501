"""The run directory: its paths, who may read it, and a journal that can be read while it is written."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelaunch_nb import ConfigError, IcelaunchError
from icelaunch_nb.journal import JournalWriter, read_journal
from icelaunch_nb.rundir import RunDir, check_owner, default_log_dir, make_run_dir, write_whole

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


def test_logs_lie_as_torch_lays_them(tmp_path):
    rank = RunDir(tmp_path).rank(2, 1)
    assert [str(p.relative_to(tmp_path)) for p in (rank.stdout, rank.stderr, rank.error)] == [
        "attempt_2/1/stdout.log",
        "attempt_2/1/stderr.log",
        "attempt_2/1/error.json",
    ]


def test_the_directory_and_its_files_are_their_owners_alone(tmp_path, no_umask):
    run_dir = make_run_dir(str(tmp_path / "logs"), "run")
    run_dir.write(run_dir.spec, "{}")
    JournalWriter(run_dir.journal).write("agent")
    assert mode(tmp_path / "logs") == 0o700
    assert mode(run_dir.path) == 0o700
    for path in (run_dir.spec, run_dir.journal, run_dir.control, run_dir.leash):
        assert mode(path) == 0o600, path
    assert stat.S_ISFIFO(run_dir.control.stat().st_mode) and stat.S_ISFIFO(
        run_dir.leash.stat().st_mode
    )


def test_directories_made_on_the_way_are_not_open_to_everybody(tmp_path, no_umask):
    make_run_dir(str(tmp_path / "a" / "b"), "run")
    assert mode(tmp_path / "a") & 0o022 == 0


def test_a_log_dir_that_was_there_keeps_its_mode(tmp_path):
    (tmp_path / "logs").mkdir(mode=0o755)
    make_run_dir(str(tmp_path / "logs"), "run")
    assert mode(tmp_path / "logs") == 0o755


def test_a_whole_file_replaces_the_old_one_and_leaves_no_draft(tmp_path):
    write_whole(tmp_path / "x", b"old")
    write_whole(tmp_path / "x", b"new")
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


# The default place.


def test_the_default_place_is_the_users_own(tmp_is_here, no_umask):
    assert default_log_dir() == tmp_is_here / f"icelaunch_nb-{os.geteuid()}"
    assert mode(default_log_dir()) == 0o700
    assert make_run_dir(None, "x").path.parent == default_log_dir()


def test_a_default_place_that_was_open_is_closed(tmp_is_here):
    default_log_dir().chmod(0o777)
    assert mode(default_log_dir()) == 0o700


@as_root
def test_a_default_place_of_somebody_else_is_refused(tmp_is_here):
    os.chown(default_log_dir(), 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to somebody else; set log_dir"):
        default_log_dir()


def test_a_link_in_the_default_place_is_refused(tmp_is_here):
    (tmp_is_here / "elsewhere").mkdir()
    (tmp_is_here / f"icelaunch_nb-{os.geteuid()}").symlink_to(tmp_is_here / "elsewhere")
    with pytest.raises(ConfigError, match="log_dir"):
        default_log_dir()


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_something_else_in_the_default_place_is_a_config_error(kind, tmp_is_here):
    place = tmp_is_here / f"icelaunch_nb-{os.geteuid()}"
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to(tmp_is_here / "nowhere")
    with pytest.raises(ConfigError) as caught:
        make_run_dir(None, "x")
    assert caught.value.field == "log_dir"


# Owners.


def test_what_is_mine_passes(tmp_path):
    check_owner(tmp_path)


@as_root
def test_what_is_somebody_elses_is_refused_even_for_root(tmp_path):
    (tmp_path / "x").write_text("")
    os.chown(tmp_path / "x", 12345, 12345)
    with pytest.raises(IcelaunchError, match="belongs to user 12345"):
        check_owner(tmp_path / "x")


@as_root
def test_a_spec_of_somebody_else_is_not_read(tmp_path):
    run_dir = make_run_dir(str(tmp_path), "x")
    run_dir.write(run_dir.spec, "{}")
    os.chown(run_dir.path, 12345, 12345)
    with pytest.raises(IcelaunchError, match="belongs to user 12345"):
        run_dir.read_spec()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(IcelaunchError, match="nowhere"):
        check_owner(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00"])
def test_a_directory_without_a_spec_is_no_runs(content, tmp_path):
    if content is not None:
        RunDir(tmp_path).spec.write_bytes(content)
    with pytest.raises(IcelaunchError, match="is not the directory of a run"):
        RunDir(tmp_path).read_spec()


# The journal.


def recorded(path: Path) -> tuple[bytes, list[dict]]:
    """A journal as an agent writes it, and the events in it."""
    writer = JournalWriter(path)
    writer.write("agent", pid=12, started=1.5)
    writer.write("attempt", attempt=0, ranks=[{"rank": 0, "local_rank": 0, "pid": 13}])
    writer.write(
        "failure",
        attempt=0,
        failures=[{"message": 'Überlauf\n"quoted" \u2028 \ud800', "traceback": "a\nb\n"}],
    )
    writer.write("end", state="failed", note="")
    data = path.read_bytes()
    return data, [json.loads(line) for line in data.splitlines()]


def test_every_event_is_one_line_with_its_time(tmp_path):
    data, events = recorded(tmp_path / "j")
    assert [e["event"] for e in events] == ["agent", "attempt", "failure", "end"]
    assert all(isinstance(e["t"], float) for e in events)
    assert data.isascii() and data.endswith(b"\n")
    assert read_journal(tmp_path / "j", 0) == (events, len(data))


def test_a_journal_cut_at_any_byte_gives_whole_events_and_goes_on_when_the_rest_arrives(tmp_path):
    data, events = recorded(tmp_path / "recorded")
    path = tmp_path / "j"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        first, offset = read_journal(path, 0)
        assert first == events[: data[:cut].count(b"\n")]
        assert read_journal(path, offset) == ([], offset)
        with open(path, "ab") as file:
            file.write(data[cut:])
        rest, offset = read_journal(path, offset)
        assert (first + rest, offset) == (events, len(data))


def test_a_journal_that_grows_by_single_bytes_is_read_whole(tmp_path):
    data, events = recorded(tmp_path / "recorded")
    seen, offset = [], 0
    with open(tmp_path / "j", "wb", buffering=0) as file:
        for byte in data:
            file.write(bytes([byte]))
            new, offset = read_journal(tmp_path / "j", offset)
            seen += new
    assert seen == events


def test_a_journal_that_is_not_there_yet_is_empty(tmp_path):
    assert read_journal(tmp_path / "j", 0) == ([], 0)
    JournalWriter(tmp_path / "j").write("agent")
    assert [e["event"] for e in read_journal(tmp_path / "j", 0)[0]] == ["agent"]


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
def test_lines_that_are_no_events_are_passed_over(rubbish, tmp_path):
    (tmp_path / "j").write_bytes(b'{"event": "a"}\n' + rubbish + b'\n{"event": "b"}\n')
    events, offset = read_journal(tmp_path / "j", 0)
    assert [e["event"] for e in events] == ["a", "b"]
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
        events, offset = read_journal(path, offset)
        found += events
    assert found == read_journal(path, 0)[0]
    assert offset == len(data) - len(unfinished)
    assert [event for event in found if "value" in event] == [
        json.loads(line) for line in lines if line.startswith(b"{") and b'"value"' in line
    ]
