"""What guards a folder of scores: no results of another model, no lost results, documents long enough."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from skipwise.errors import InputError
from skipwise.evals.opening import open_local
from skipwise.evals.passkey import Passkey
from skipwise.pipeline.evaluation import judge, tokenize
from skipwise.scores import Scores


def passkey(trials=2):
    return Passkey(lengths=[150], trials=trials)


@pytest.fixture
def changed(demo_base, tmp_path):
    """A copy of the demo's model whose middle was changed: neither size nor ends of the file tell."""
    folder = tmp_path / "changed" / demo_base.name
    shutil.copytree(demo_base, folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name in weights if "o_proj" in name)[1]
    weights[name] = weights[name] * np.float16(1.5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def opened(folder, name="demo"):
    return open_local(str(folder), name=name, device="cpu")


def test_a_changed_checkpoint_has_another_revision(demo_base, changed):
    before, after = opened(demo_base).subject, opened(changed).subject
    assert before.revision != after.revision
    assert before.revision == opened(demo_base).subject.revision
    assert before.tokenizer == after.tokenizer


def test_two_models_never_mix_under_one_name(demo_base, changed, tmp_path):
    output = tmp_path / "scores"
    judge(opened(demo_base), passkey(), output, command="")
    with pytest.raises(InputError, match=r"holds results of another model .*--fresh"):
        judge(opened(changed), passkey(), output, command="")
    reader = opened(changed)
    task = Passkey(lengths=[150], trials=2, name="other")
    for fresh in (False, True):
        with pytest.raises(
            InputError, match=r"has passkey of another model called demo .*--output or --name"
        ):
            judge(reader, task, output, command="", fresh=fresh)
    judge(opened(changed, "mine"), passkey(), output, command="")
    assert [each.name for each in Scores.read(output).subjects] == ["demo", "mine"]
    judge(opened(demo_base), passkey(3), output, command="", fresh=True)
    assert {each.n for each in Scores.read(output).scores if each.depth is None} == {2, 3}


def test_any_name_makes_a_file(demo_base, tmp_path):
    judge(opened(demo_base, 'a/b:c*"d?'), passkey(), tmp_path, command="")
    (journal,) = (tmp_path / "measured").iterdir()
    assert journal.name == "a--b--c----d---passkey.jsonl"


def test_long_documents_come_first_and_are_cut(demo_base):
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    texts = ["short text. ", "word " * 50, "def main():\n    return 1\n" * 300, "import os\n" * 400]
    lengths = [len(each) for each in tokenize(texts, tokenizer, tokens=200, count=3)]
    assert lengths[:2] == [200, 200]
    assert 20 < lengths[2] < 200
    whole = tokenizer(texts[2])["input_ids"]
    assert tokenize(texts, tokenizer, tokens=200, count=1)[0].tolist() == whole[:200]
