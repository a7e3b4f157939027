"""The plan against steps measured on a GPU: memory within 10 %, time within 25 %."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "plan"
MEASURED = FOLDER / "results" / "measured.json"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("plan_compare", FOLDER / "compare.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.sys.modules, "plan_compare", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.skipif(not MEASURED.is_file(), reason="no measured steps")
def test_memory_within_ten_percent_and_time_within_a_quarter(compare):
    found = compare.comparisons(json.loads(MEASURED.read_text(encoding="utf-8")))
    assert len(found) >= 10
    assert {each.name: f"{each.memory_off:+.1%}" for each in found if abs(each.memory_off) > 0.10} == {}
    assert {each.name: f"{each.time_off:+.0%}" for each in found if abs(each.time_off) > 0.25} == {}


def test_the_page_names_every_case(compare):
    given = {
        **{"model": "tiny", "method": "full", "weights": "float32", "row_length": 128, "micro_batch": 2},
        **{"checkpointing": True, "fused_loss": False, "optimizer": "adamw", "liger": "loss"},
        "micro_batches": 2,
    }
    ran = {"settings": given, "memory": {"peak": 2**30}, "seconds": {"forward": 0.5, "backward": 1.5}}
    failed = {"settings": given | {"model": "7B"}, "error": "OutOfMemoryError: too large"}
    environment = {"versions": {"torch": "2.11", "peft": None}, "device": "a GPU", "made": "today"}
    measured = {"environment": environment, "cases": [ran, failed]}
    page = compare.table(measured)
    assert "| tiny, full float32, 2 x 128, checkpointed, whole logits | 0.0" in page
    assert "| 2.000 | -" in page
    assert "OutOfMemoryError: too large" in page
    assert len(compare.comparisons(measured)) == 1
