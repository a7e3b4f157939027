"""Made-up questions in the files of the real datasets, asked of models whose answers are known."""

import json
import logging
import math
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from skipwise.errors import InputError, RunError
from skipwise.evals.local import LocalReader
from skipwise.evals.run import evaluate
from skipwise.evals.served import ServedReader
from skipwise.scores import Subject

pytest.importorskip("lm_eval", reason="lm-evaluation-harness: pip install 'skipwise[benchmarks]'")
datasets = pytest.importorskip("datasets")

from skipwise.evals.benchmarks import PAPER, Benchmarks, harness, models, task  # noqa: E402

QUESTIONS = 16


class Words:
    """Made-up texts; the right answer of every question is remembered as the end of its prompt."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.right = []

    def text(self, count):
        return " ".join("".join(self.random.choices("abcdefghijklmnop", k=4)) for _ in range(count))

    def boolq(self):
        label, passage, question = self.random.randrange(2), self.text(12), f"is the {self.text(5)}"
        self.right.append((f"Question: {question}?\nAnswer:", [" no", " yes"][label]))
        return {"passage": passage, "question": question, "idx": 1, "label": label}

    def piqa(self):
        label, goal, answers = self.random.randrange(2), self.text(6), [self.text(3), self.text(4)]
        self.right.append((f"Question: {goal}\nAnswer:", " " + answers[label]))
        return {"goal": goal, "sol1": answers[0], "sol2": answers[1], "label": label}

    def winogrande(self):
        label, start, end = self.random.randrange(2), f"The {self.text(6)} and", f"the {self.text(4)}."
        options = [self.text(1), self.text(1)]
        self.right.append((f"{start} {options[label]}", " " + end))
        return {
            "sentence": f"{start} _ {end}",
            "option1": options[0],
            "option2": options[1],
            "answer": str(label + 1),
        }

    def truthfulqa_mc2(self):
        question, true, false = self.text(6), [self.text(3), self.text(4)], [self.text(3), self.text(4)]
        self.right += [(f"Q: {question}\nA:", " " + answer) for answer in true]
        return {
            "question": question,
            "mc1_targets": {"choices": [true[0], *false], "labels": [1, 0, 0]},
            "mc2_targets": {"choices": [*true, *false], "labels": [1, 1, 0, 0]},
        }

    def arc_challenge(self):
        label, question = self.random.randrange(4), self.text(5)
        answers = [self.text(count) for count in (1, 4, 2, 1)]
        self.right.append((f"Question: {question}\nAnswer:", " " + answers[label]))
        return {
            "id": self.text(1),
            "question": question,
            "choices": {"text": answers, "label": list("ABCD")},
            "answerKey": "ABCD"[label],
        }

    def hellaswag(self):
        label, first, second = self.random.randrange(4), f"The {self.text(5)}.", f"the {self.text(3)}"
        endings = [self.text(4) for _ in range(4)]
        self.right.append((f"Music: {first} {second.capitalize()}", " " + endings[label]))
        return {
            "ind": 3,
            "activity_label": "Music",
            "ctx_a": first,
            "ctx_b": second,
            "ctx": f"{first} {second}",
            "endings": endings,
            "source_id": "made~up",
            "split": "val",
            "split_type": "indomain",
            "label": str(label),
        }


@pytest.fixture(scope="module")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Nothing is left behind where `datasets` keeps what it has read."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the data of the six, as their datasets have them, and all right answers."""
    folder, words = tmp_path_factory.mktemp("data"), Words(5)
    for name in PAPER:
        make = getattr(words, name)
        splits = (
            {"validation": QUESTIONS} if name == "truthfulqa_mc2" else {"train": 30, "validation": QUESTIONS}
        )
        if name == "arc_challenge":
            splits = {"train": 30, "validation": 2, "test": QUESTIONS}
        for split, count in splits.items():
            write(folder / name / f"{split}.jsonl", [make() for _ in range(count)])
    return SimpleNamespace(folder=folder, right=words.right)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


def reader_of(model, tokenizer, window=4096, **subject):
    return LocalReader(model, tokenizer, Subject(name="m", window=window, **subject))


@pytest.fixture
def random_reader(make_model, tokenizer):
    model = make_model(vocab_size=2048, max_position_embeddings=4096, num_key_value_heads=1, seed=3)
    return reader_of(model, tokenizer)


@pytest.fixture
def knowing_reader(make_model, tokenizer, data, monkeypatch):
    """A model that goes on with every right answer, and with anything else has no idea."""
    follows, tail = {}, 12
    for prompt, answer in data.right:
        tokens, start = tokenizer(prompt + answer)["input_ids"], len(tokenizer(prompt)["input_ids"])
        for place in range(start, len(tokens)):
            follows.setdefault(tuple(tokens[place - tail : place]), set()).add(tokens[place])
    reader = reader_of(make_model(vocab_size=2048, max_position_embeddings=4096), tokenizer)

    def forward(input_ids, **_):
        logits = torch.zeros(*input_ids.shape, 2048)
        for row, tokens in enumerate(input_ids.tolist()):
            for place in range(tail, len(tokens) + 1):
                logits[row, place - 1, list(follows.get(tuple(tokens[place - tail : place]), ()))] = 20.0
        return SimpleNamespace(logits=logits)

    monkeypatch.setattr(reader.model, "forward", forward)
    return reader


def test_a_model_that_knows_the_answers_has_them_all(knowing_reader, data):
    benchmarks = Benchmarks(data_folder=data.folder, batch_size=5)
    scores = evaluate(benchmarks, knowing_reader)
    assert [score.subtask for score in scores] == list(PAPER)
    for score in scores:
        assert (score.model, score.task, score.length) == ("m", "benchmark", 0)
        assert score.n == len(score.samples) == QUESTIONS
        assert score.value == pytest.approx(1.0, abs=1e-3), score.subtask
    asked = benchmarks.settings["tasks"]
    assert {name: (each["examples"], each["metric"]) for name, each in asked.items()} == {
        "boolq": (0, "acc"),
        "piqa": (0, "acc"),
        "winogrande": (0, "acc"),
        "truthfulqa_mc2": (0, "acc"),
        "arc_challenge": (25, "acc_norm"),
        "hellaswag": (10, "acc_norm"),
    }


def test_a_random_model_scores_near_chance(random_reader, data):
    for score in evaluate(Benchmarks(data_folder=data.folder), random_reader):
        chance = 0.25 if score.subtask in ("arc_challenge", "hellaswag") else 0.5
        assert abs(score.value - chance) < 0.3, score.subtask
        assert score.value == pytest.approx(np.mean(score.samples))
        expected = np.std(score.samples, ddof=1) / math.sqrt(QUESTIONS)
        assert score.stderr == pytest.approx(expected)
        if score.subtask != "truthfulqa_mc2":
            assert set(score.samples) == {0.0, 1.0}
        else:
            assert all(0 < sample < 1 for sample in score.samples)


def asked_of(benchmarks, name):
    """The prompts and answers that the harness made last."""
    loaded = benchmarks.items(None)
    return [each.args for each in next(item.what for item in loaded if item.key == name).task.instances]


def test_examples_stand_before_each_question(random_reader, data):
    benchmarks = Benchmarks(data_folder=data.folder, tasks=("arc_challenge", "hellaswag", "boolq"), limit=2)
    evaluate(benchmarks, random_reader)
    right = dict(data.right)
    prompt, _ = asked_of(benchmarks, "arc_challenge")[0]
    *examples, question = prompt.split("\n\n")
    assert len(examples) == 25
    assert len(set(examples)) == 25
    for example in examples:
        head, answer = example.rsplit("Answer:", 1)
        assert right[head + "Answer:"] == answer
    assert question in right
    prompt, _ = asked_of(benchmarks, "hellaswag")[0]
    assert prompt.count("Music: ") == 11
    prompt, answer = asked_of(benchmarks, "boolq")[1]
    assert prompt.count("Question: ") == 1
    assert answer == " yes"


@pytest.mark.parametrize("name", ["piqa", "arc_challenge"])
def test_the_metric_is_the_papers(random_reader, data, name):
    benchmarks = Benchmarks(data_folder=data.folder, tasks=(name,))
    (item,) = benchmarks.items(random_reader)
    found, _ = benchmarks._ask(random_reader, name, item.what)
    values = found["results"][name]
    assert values["acc,none"] != values["acc_norm,none"]
    (score,) = evaluate(benchmarks, random_reader)
    assert score.value == values[f"{PAPER[name][1]},none"]


def test_the_seed_chooses_the_examples(random_reader, data):
    def prompts(seed):
        benchmarks = Benchmarks(data_folder=data.folder, tasks=("arc_challenge",), seed=seed, limit=2)
        evaluate(benchmarks, random_reader)
        return asked_of(benchmarks, "arc_challenge")

    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@pytest.mark.parametrize(
    "tokens", [{}, {"pad_token": "<|endoftext|>"}, {"pad_token": None, "eos_token": None, "unk_token": None}]
)
def test_rows_together_get_what_each_gets_alone(make_model, demo_base, tokens):
    tokenizer = AutoTokenizer.from_pretrained(demo_base, **tokens)
    model = make_model(vocab_size=2048, max_position_embeddings=512, seed=1)
    reader = reader_of(model, tokenizer, 512)
    words = Words(2)
    texts = [(words.text(size), " " + words.text(size % 5 + 1)) for size in (1, 40, 3, 17, 8, 9, 2)]
    asked = [SimpleNamespace(args=each) for each in texts]
    together = models.language_model(reader, 5, scores=True)
    found = together.loglikelihood(asked, disable_tqdm=True)
    for (context, answer), (value, _) in zip(texts, found, strict=True):
        row, start = tokenizer(context + answer)["input_ids"], len(tokenizer(context)["input_ids"])
        assert value == pytest.approx(-reader.losses([row], first=start)[0].sum(), rel=1e-5, abs=1e-4)
    assert together.tokenizer is not tokenizer
    assert tokenizer.pad_token == tokens.get("pad_token")
    assert len(together.tokenizer) == len(tokenizer)
    assert model.get_input_embeddings().num_embeddings == 2048
    assert together.cut == 0
    longest = max(len(tokenizer("".join(each))["input_ids"]) for each in texts)
    for window, cut in ((longest - 1, 0), (longest - 2, 1)):  # nothing reads the last token
        narrow = models.language_model(reader_of(model, tokenizer, window), 5, scores=True)
        narrow.loglikelihood(asked, disable_tqdm=True)
        assert narrow.cut == cut


def test_generated_answers_do_not_depend_on_the_padding(make_model, tokenizer):
    reader = reader_of(make_model(vocab_size=2048, max_position_embeddings=512, seed=1), tokenizer, 512)
    words, until = Words(4), {"until": ["\n\n"], "max_gen_toks": 7, "do_sample": False}
    asked = [SimpleNamespace(args=(words.text(size), until)) for size in (2, 30, 11)]
    alone = models.language_model(reader, 1, scores=False).generate_until(asked, disable_tqdm=True)
    together = models.language_model(reader, 3, scores=False).generate_until(asked, disable_tqdm=True)
    assert alone == together
    assert len(set(alone)) == 3


def test_prompts_longer_than_the_window_are_counted(make_model, tokenizer, data, caplog):
    model = make_model(vocab_size=2048, max_position_embeddings=256)
    benchmarks = Benchmarks(data_folder=data.folder, tasks=("arc_challenge",), limit=3)
    with caplog.at_level(logging.WARNING, logger="skipwise"):
        found = benchmarks.measure(reader_of(model, tokenizer, 256), benchmarks.items(None))
    assert found[0]["cut"] == 12
    message = (
        "arc_challenge: the beginning of 12 prompts was cut off, they have more than the window of 256 tokens"
    )
    assert message in caplog.messages


def test_what_was_measured_is_not_measured_again(random_reader, data, tmp_path, monkeypatch):
    benchmarks = Benchmarks(data_folder=data.folder, tasks=("boolq", "piqa", "winogrande"), limit=5)
    whole, measure = evaluate(benchmarks, random_reader), Benchmarks._measure
    done = []

    def break_off(self, reader, name, loaded):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(name)
        return measure(self, reader, name, loaded)

    journal = tmp_path / "out" / "measured" / "m.jsonl"
    monkeypatch.setattr(Benchmarks, "_measure", break_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmarks, random_reader, journal=journal)
    done.clear()
    again = Benchmarks(data_folder=data.folder, tasks=("boolq", "piqa", "winogrande"), limit=5, batch_size=3)
    assert evaluate(again, random_reader, journal=journal) == whole
    assert done == ["winogrande"]
    other = Benchmarks(data_folder=data.folder, tasks=("boolq", "piqa", "winogrande"), limit=4)
    with pytest.raises(InputError, match="another setting"):
        evaluate(other, random_reader, journal=journal)


def test_a_full_gpu_halves_the_batch(random_reader, data, monkeypatch):
    forward, sizes = random_reader.model.forward, []

    def crowded(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > room:
            raise torch.OutOfMemoryError
        return forward(input_ids, **options)

    monkeypatch.setattr(random_reader.model, "forward", crowded)
    room = 2
    benchmarks = Benchmarks(data_folder=data.folder, tasks=("piqa",), batch_size=8)
    assert evaluate(benchmarks, random_reader)[0].n == QUESTIONS
    assert sizes[:3] == [8, 4, 2]
    room = 0
    with pytest.raises(RunError, match="piqa: one question does not fit"):
        evaluate(benchmarks, random_reader)


def test_data_may_lie_as_on_the_hub(random_reader, tmp_path):
    """Parquet in pieces, and a dataset of several parts whole."""
    words = Words(1)
    rows = [words.arc_challenge() for _ in range(40)]
    parts = tmp_path / "arc_challenge"
    parquet(parts / "ARC-Challenge" / "train-00000-of-00001.parquet", rows[:26])
    parquet(parts / "ARC-Challenge" / "test-00000-of-00002.parquet", rows[26:30])
    parquet(parts / "ARC-Challenge" / "test-00001-of-00002.parquet", rows[30:33])
    parquet(parts / "ARC-Easy" / "test-00000-of-00001.parquet", rows[33:])
    (score,) = evaluate(Benchmarks(data_folder=tmp_path, tasks=("arc_challenge",)), random_reader)
    assert score.n == 7


def test_a_task_of_ones_own(random_reader, tmp_path):
    """With its own examples before a question, and its own first metric."""
    rows = [{"text": f"{number} and {number} is", "answers": [str(2 * number), "7"]} for number in range(9)]
    write(tmp_path / "sums" / "questions.jsonl", rows)
    (tmp_path / "sums.yaml").write_text(
        f"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/sums/questions.jsonl}}}}
output_type: multiple_choice
test_split: test
fewshot_split: test
num_fewshot: 3
doc_to_text: "{{{{text}}}}"
doc_to_target: 0
doc_to_choice: answers
metric_list: [{{metric: acc_norm, aggregation: mean, higher_is_better: true}}, {{metric: acc}}]
metadata: {{version: 2.5}}
"""
    )
    benchmarks = Benchmarks(tasks=("sums",), task_folder=tmp_path)
    (score,) = evaluate(benchmarks, random_reader)
    assert (score.subtask, score.n) == ("sums", 9)
    asked = benchmarks.settings["tasks"]["sums"]
    assert (asked["examples"], asked["metric"], asked["version"]) == (3, "acc_norm", "2.5")
    assert asked_of(benchmarks, "sums")[0][0].count(" is") == 4


def test_settings_know_the_questions(data, tmp_path):
    def settings(folder, **options):
        return Benchmarks(data_folder=folder, tasks=("boolq",), **options).settings

    assert settings(data.folder) == settings(data.folder, batch_size=3)
    assert settings(data.folder) != settings(data.folder, limit=3)
    lines = (data.folder / "boolq" / "validation.jsonl").read_text().splitlines()
    write(tmp_path / "boolq" / "validation.jsonl", [json.loads(line) for line in lines])
    assert settings(tmp_path) == settings(data.folder)  # no training data are needed for no examples
    write(tmp_path / "boolq" / "validation.jsonl", [json.loads(line) for line in reversed(lines)])
    assert settings(tmp_path) != settings(data.folder)


def nothing(folder):
    (folder / "boolq").mkdir()


def wrong_columns(folder):
    write(folder / "boolq" / "validation.jsonl", [{"text": "a", "label": 1}])


def no_validation(folder):
    write(folder / "boolq" / "train.jsonl", [{"question": "a", "passage": "b", "label": 1}])


def few_examples(folder):
    rows = [Words(1).arc_challenge() for _ in range(24)]
    for split in ("train", "test"):
        write(folder / "arc_challenge" / f"{split}.jsonl", rows)


def not_json(folder):
    nothing(folder)
    (folder / "boolq" / "validation.jsonl").write_text("{")


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (nothing, "boolq", "boolq cannot be read as boolq (EmptyDatasetError"),
        (wrong_columns, "boolq", "boolq cannot be read as boolq ("),
        (no_validation, "boolq", "boolq: no file of the split validation (such as validation.jsonl"),
        (few_examples, "arc_challenge", "arc_challenge: 24 training questions are too few for 25 examples"),
        (not_json, "boolq", "boolq cannot be read as boolq ("),
    ],
)
def test_bad_data_are_told_in_a_line(tmp_path, make, name, words):
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        Benchmarks(data_folder=tmp_path, tasks=(name,)).items(None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_there(tmp_path):
    for option in ("data_folder", "task_folder"):
        with pytest.raises(InputError, match="nowhere: no such folder"):
            Benchmarks(**{option: tmp_path / "nowhere"}).items(None)


def test_without_a_network_and_data(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(harness.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError) as caught:
        Benchmarks(tasks=("piqa",)).items(None)
    assert str(caught.value) == (
        "piqa: http://127.0.0.1:1 does not answer: put its data into DIR/piqa and add --data-folder DIR; or "
        "set HF_HUB_OFFLINE=1 if it was downloaded before"
    )
    with pytest.raises(InputError, match=f"put its data into {tmp_path}/piqa; or set"):
        Benchmarks(tasks=("piqa",), data_folder=tmp_path).items(None)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(task, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'skipwise\[benchmarks\]'"):
        Benchmarks()


@pytest.mark.slow  # the harness looks through all of its files
def test_a_tag_and_a_group_stand_for_their_tasks(random_reader, data, tmp_path):
    rows = [Words(1).arc_challenge() for _ in range(30)]
    for name in ("arc_easy", "arc_challenge"):
        for split in ("train", "test"):
            write(tmp_path / "data" / name / f"{split}.jsonl", rows)
    (tmp_path / "both.yaml").write_text(f"""
group: both
task:
  - task: arc_easy
    dataset_path: {tmp_path}/data/arc_easy
    dataset_name: null
    num_fewshot: 2
""")
    benchmarks = Benchmarks(
        tasks=("ai2_arc", "both"), data_folder=tmp_path / "data", task_folder=tmp_path, limit=3
    )
    found = {each.subtask: each for each in evaluate(benchmarks, random_reader)}
    assert {name: each.n for name, each in found.items()} == {"arc_challenge": 3, "arc_easy": 3}
    asked = benchmarks.settings["tasks"]
    assert (asked["arc_challenge"]["examples"], asked["arc_easy"]["examples"]) == (25, 2)
    assert (asked["arc_challenge"]["metric"], asked["arc_easy"]["metric"]) == ("acc_norm", "acc")
    (tmp_path / "data" / "both").mkdir()
    with pytest.raises(InputError, match="both is not one task: name its tasks"):
        Benchmarks(tasks=("both",), data_folder=tmp_path / "data", task_folder=tmp_path).items(None)


@pytest.mark.slow  # the harness looks through all of its files
def test_unknown_names_get_a_hint():
    with pytest.raises(InputError, match="has no task hellaswagg: did you mean hellaswag"):
        Benchmarks(tasks=("hellaswagg",)).items(None)


@pytest.fixture
def serve(random_reader):
    """``serve(tokenizer)``: the random model behind an address, as vLLM answers, and what it was sent."""
    bodies, headers = [], []

    def answer(body):
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            losses = random_reader.losses([prompt])[0]
            values = [None, *(-losses).tolist(), -1.5]
            tops = [None, *({"a": value} for value in values[1:])]
            choices.append(
                {"index": index, "text": "", "logprobs": {"token_logprobs": values, "top_logprobs": tops}}
            )
        return {"choices": choices[::-1]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send({"data": [{"id": "m", "max_model_len": 4096}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not isinstance(body["prompt"][0], list):
                body["prompt"] = [body["prompt"]]
            bodies.append(body)
            headers.append(dict(self.headers))
            self.send(answer(body))

        def send(self, content):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"

    def make(tokenizer):
        reader = ServedReader(url, tokenizer, Subject(name="m", window=4096))
        return SimpleNamespace(reader=reader, bodies=bodies, headers=headers)

    yield make
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_served_model_gets_the_scores_of_the_local_one(serve, tokenizer, data, random_reader, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("SKIPWISE_API_KEY", "ours")
    served = serve(tokenizer)
    benchmarks = Benchmarks(data_folder=data.folder, tasks=("piqa", "truthfulqa_mc2"), limit=6, batch_size=3)
    for here, there in zip(
        evaluate(benchmarks, random_reader), evaluate(benchmarks, served.reader), strict=True
    ):
        assert there.samples == pytest.approx(here.samples, rel=1e-4)
        assert there.value == pytest.approx(here.value, rel=1e-4)
    assert max(len(body["prompt"]) for body in served.bodies) == 3
    assert {each["Authorization"] for each in served.headers} == {"Bearer ours"}
    assert {body["repetition_penalty"] for body in served.bodies} == {1.0}


def test_a_served_model_sees_the_bos_token_of_the_local_one(serve, demo_base, random_reader):
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    start = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.eos_token} $A", special_tokens=[(tokenizer.eos_token, start)]
    )
    assert tokenizer("a").input_ids[0] == start
    served = serve(tokenizer)
    here = models.language_model(reader_of(random_reader.model, tokenizer), 1, scores=True)
    there = models.language_model(served.reader, 1, scores=True)
    asked = [SimpleNamespace(args=("is it", " yes")), SimpleNamespace(args=("or is it", " not at all"))]
    found = there.loglikelihood(asked, disable_tqdm=True)
    assert {body["prompt"][0][0] for body in served.bodies} == {start}
    for (value, _), (expected, _) in zip(found, here.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert value == pytest.approx(expected, rel=1e-4)


def test_a_server_that_breaks_off(serve, tokenizer, data, monkeypatch):
    served = serve(tokenizer)

    def gone(self, *given, **options):
        raise ConnectionError("connection refused")

    monkeypatch.setattr("lm_eval.models.openai_completions.LocalCompletionsAPI.model_call", gone)
    benchmarks = Benchmarks(data_folder=data.folder, tasks=("piqa",), limit=1)
    with pytest.raises(RunError, match="/v1 broke off in piqa: connection refused"):
        evaluate(benchmarks, served.reader)
