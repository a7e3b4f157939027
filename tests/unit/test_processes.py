import pytest
import torch

from skipwise import environment, processes
from skipwise.errors import RunError


@pytest.fixture(autouse=True)
def _alone():
    processes.join()  # before a test says otherwise: what is joined stays so


def test_a_run_without_a_launcher_is_its_own_only_process(tmp_path):
    assert processes.launched() == processes.count() == 1
    assert processes.is_main()
    processes.wait()
    assert processes.smallest(3) == 3
    assert processes.any_of(True)
    assert not processes.any_of(False)
    processes.make_folder(tmp_path / "run" / "train")
    processes.make_folder(tmp_path / "run" / "train")
    assert (tmp_path / "run" / "train").is_dir()
    processes.leave()


def test_an_error_leaves_the_body_that_goes_first():
    with pytest.raises(ZeroDivisionError), processes.main_first():
        _ = 1 / 0


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_that_do_not_find_each_other_stop(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(RunError, match=r"^4 processes were started, but Accelerate sees 1: each would train"):
        processes.join()


@pytest.mark.parametrize(
    ("rank", "gpus", "expected"), [(None, 4, "cuda"), ("2", 4, "cuda:2"), ("2", 1, "cuda:0"), ("0", 0, "cpu")]
)
def test_each_process_has_its_own_gpu(monkeypatch, rank, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert environment.default_device() == expected


def test_idle_gpus_are_named(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "has 4 GPUs and this run uses one: torchrun --nproc-per-node 4" in environment.idle_gpus()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert environment.idle_gpus() is None
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert environment.idle_gpus() is None
