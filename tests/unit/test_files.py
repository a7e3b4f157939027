import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from skipwise.errors import InputError, RunError
from skipwise.files import disk_errors, flush, whole_folder, write_json, write_text

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "runs" / "checkpoint"
    with whole_folder(folder) as aside:
        (aside / "weights").write_text("new")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["weights"]
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_midway_leaves_what_was_there(tmp_path, error):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_text("old")

    def fill():
        with whole_folder(folder) as aside:
            (aside / "weights").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fill()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (folder / "weights").read_text() == "old"


def test_a_folder_is_replaced_and_what_a_killed_run_left_is_not_mixed_in(tmp_path):
    folder, killed = tmp_path / "checkpoint", tmp_path / "checkpoint.partial"
    for each in (folder, killed):
        each.mkdir()
        (each / f"old-{each.name}").write_text("old")
    with whole_folder(folder) as aside:
        (aside / "weights").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "weights"]


def test_text_and_json_replace_in_one_step(tmp_path):
    path = tmp_path / "a" / "scores.json"
    write_text(path, "Löwe\n")
    assert path.read_bytes() == "Löwe\n".encode()
    write_json(path, {"value": [1.5, None]})
    assert json.loads(path.read_text()) == {"value": [1.5, None]}
    assert [each.name for each in path.parent.iterdir()] == ["scores.json"]


def test_a_value_that_is_no_json_leaves_the_file_alone(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == [1]


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
    ids=["python", "safetensors", "torch.save"],
)
def test_a_full_disk_is_said_in_one_line(tmp_path, error):
    line = r"^the disk that holds .*/run is full: free some space, [^\n]*$"
    with pytest.raises(RunError, match=line), disk_errors(tmp_path / "run"):
        raise error


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    error = OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(RunError, match="run cannot be written: Read-only"), disk_errors(tmp_path / "run"):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), RuntimeError("other"), InputError("x")])
def test_other_errors_pass_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as found, disk_errors(tmp_path):
        raise error
    assert found.value is error


def test_a_disk_that_fills_up_midway_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_json(path, [1])
    whole = Path.write_bytes

    def half(self, content):
        whole(self, content[: len(content) // 2])
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(RunError, match=r"scores\.json is full"):
        write_json(path, [1, 2, 3])
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="files and folders cannot be flushed by their names there")
def test_what_gets_its_name_is_on_the_disk_already(tmp_path, monkeypatch):
    """A power cut after a rename must not leave a name without content."""
    flushed, names, sync = [], {}, os.fsync

    def note(number):
        place = Path(f"/proc/self/fd/{number}").readlink()
        flushed.append(place.relative_to(tmp_path).as_posix())
        names[flushed[-1]] = {path.name for path in tmp_path.iterdir()}
        sync(number)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see what is flushed")
    monkeypatch.setattr(os, "fsync", note)
    with whole_folder(tmp_path / "checkpoint") as aside:
        (aside / "deeper").mkdir()
        (aside / "deeper" / "weights").write_text("new")
    write_text(tmp_path / "note", "whole")
    flush(tmp_path / "note")
    assert flushed == [
        "checkpoint.partial/deeper/weights",
        "checkpoint.partial/deeper",
        "checkpoint.partial",
        ".",
        "note.partial",
        ".",
        "note",
    ]
    assert "checkpoint" not in names["checkpoint.partial"]
    assert "note" not in names["note.partial"]
    assert "note" in names["."]
