import json
import logging
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from skipwise.data.passages import Passages, TokenizedDocuments, split_documents, tokenize_documents
from skipwise.errors import InputError


class Counting(PreTrainedTokenizerFast):
    """Counts the texts it is asked to tokenize."""

    texts = 0

    def __call__(self, text, **options):
        self.texts += len(text)
        return super().__call__(text, **options)


class Letters(PreTrainedTokenizer):
    """A slow tokenizer: one token a letter."""

    vocab_files_names = {"vocab_file": "letters.json"}  # noqa: RUF012
    model_input_names = ["input_ids"]  # noqa: RUF012

    def __init__(self, letters="abc?", **options):
        self.letters = letters
        super().__init__(unk_token="?", **options)

    vocab_size = property(lambda self: len(self.letters))

    def get_vocab(self):
        return {letter: i for i, letter in enumerate(self.letters)}

    def _tokenize(self, text, **options):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.find(token) if token in self.letters else self.letters.index("?")

    def _convert_id_to_token(self, index):
        return self.letters[index]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = Path(save_directory) / "letters.json"
        path.write_text(json.dumps(self.letters))
        return (str(path),)


def byte_tokenizer(*merges: tuple[str, str]) -> Counting:
    """A real byte-level tokenizer: one token a byte, but for the given merges."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", len(vocab))])
    return Counting(tokenizer_object=backend, bos_token="<s>", model_max_length=8)


def texts_of(lengths, seed=3):
    letters = np.random.default_rng(seed).integers(97, 123, size=sum(lengths), dtype=np.uint8)
    ends = np.cumsum([0, *lengths])
    return [bytes(letters[a:b]).decode() for a, b in pairwise(ends)]


def documents_of(texts):
    return Dataset.from_dict({"text": texts, "source": [f"{i}.txt" for i in range(len(texts))]})


@pytest.fixture
def tokenized(tmp_path):
    """Documents of the given numbers of tokens."""
    return lambda *lengths: tokenize_documents(
        documents_of(texts_of(lengths)), byte_tokenizer(), cache_dir=tmp_path / "tokens"
    )


def test_documents_are_tokenized_whole_and_without_special_tokens(tmp_path):
    texts = ["word", "é", *texts_of([1, 70, 1203, 5, 5, 5])] * 200  # equal lengths and several chunks, too
    tokenizer = byte_tokenizer(("o", "r"))
    tokenizer.backend_tokenizer.enable_truncation(3)
    documents = tokenize_documents(documents_of(texts), tokenizer, cache_dir=tmp_path)
    assert len(documents._values) > 1
    assert [documents[i].tolist() for i in range(8)] == tokenizer(texts[:8], add_special_tokens=False)[
        "input_ids"
    ]
    assert tokenizer.decode(documents[1596]) == texts[1596]
    assert documents[-3].tolist() == documents[1597].tolist()
    assert documents.lengths[:3].tolist() == [3, 2, 1]
    assert documents.lengths.dtype == np.int64
    assert [len(documents[i]) for i in range(len(documents))] == documents.lengths.tolist()
    assert documents.total_tokens == documents.lengths.sum()
    assert documents.source(1599) == "1599.txt"
    with pytest.raises(IndexError):
        documents[1600]


def test_documents_longer_than_the_window_are_no_reason_to_warn(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = byte_tokenizer()
    tokenize_documents(documents_of(texts_of([100])), tokenizer, cache_dir=tmp_path)
    assert caplog.text == ""
    tokenizer("longer than eight")
    assert "longer than" in caplog.text


def test_a_slow_tokenizer_works_and_its_content_is_part_of_the_key(tmp_path):
    documents = documents_of(["abca", "cz"])
    first = tokenize_documents(documents, Letters(), cache_dir=tmp_path)
    assert [first[i].tolist() for i in range(2)] == [[0, 1, 2, 0], [2, 3]]
    again = tokenize_documents(documents, Letters(), cache_dir=tmp_path)
    other = tokenize_documents(documents, Letters("cba?"), cache_dir=tmp_path)
    assert other[0].tolist() == [2, 1, 0, 2]
    assert again[0].tolist() == first[0].tolist()
    assert len(list(tmp_path.glob("tokens-*.arrow"))) == 2


def test_a_second_call_reuses_the_cache_and_another_tokenizer_or_corpus_does_not(tmp_path):
    documents, tokenizer = documents_of(texts_of([5, 6, 7])), byte_tokenizer()
    first = tokenize_documents(documents, tokenizer, cache_dir=tmp_path)
    assert tokenizer.texts == 3
    tokenizer.backend_tokenizer.enable_padding(length=50)  # a state of calls, no part of the content
    again, twin = tokenize_documents(documents, tokenizer, cache_dir=tmp_path), byte_tokenizer()
    tokenize_documents(documents, twin, cache_dir=tmp_path)
    assert (tokenizer.texts, twin.texts) == (3, 0)
    assert [again[i].tolist() for i in range(3)] == [first[i].tolist() for i in range(3)]
    other = byte_tokenizer(("a", "b"))
    tokenize_documents(documents, other, cache_dir=tmp_path)
    tokenize_documents(documents.select([2, 0]), tokenizer, cache_dir=tmp_path)
    assert (other.texts, tokenizer.texts) == (3, 5)
    assert len(list(tmp_path.glob("tokens-*.arrow"))) == 3


def test_no_documents_are_told(tmp_path):
    with pytest.raises(InputError, match="no documents"):
        tokenize_documents(documents_of([]), byte_tokenizer(), cache_dir=tmp_path)


def in_arrow(documents: TokenizedDocuments, view: np.ndarray) -> bool:
    address = view.__array_interface__["data"][0]
    buffers = [chunk.values.buffers()[1] for chunk in documents._tokens.data.column("input_ids").chunks]
    return any(b.address <= address and address + view.nbytes <= b.address + b.size for b in buffers)


def test_documents_and_passages_are_views_of_the_mapped_file(tokenized):
    documents = tokenized(11, 400, 23)
    passages = Passages(documents, min_length=20, max_length=30, seed=0)
    views = [documents[1], documents.select([2])[0], passages.draw(0, 3, np.random.default_rng(0))]
    for view in views:
        assert view.dtype == np.int32
        assert view.ndim == 1
        assert in_arrow(documents, view)
        assert not view.flags.writeable
    assert not in_arrow(documents, views[0].copy())


def test_select_keeps_order_lengths_and_sources(tokenized):
    chosen = tokenized(5, 6, 7, 8).select([3, 0, 1]).select(np.array([1, 0]))
    assert chosen.lengths.tolist() == [5, 8]
    assert [chosen.source(i) for i in range(2)] == ["0.txt", "3.txt"]
    assert [len(chosen[i]) for i in range(2)] == [5, 8]
    assert len(chosen.select([])) == 0


def test_a_pickle_holds_the_path_and_not_the_tokens(tokenized):
    documents = tokenized(90_001, 17).select([1, 0])
    sent = pickle.dumps(documents)
    assert len(sent) < 20_000
    back = pickle.loads(sent)
    assert np.array_equal(back[1], documents[1])
    assert back.lengths.tolist() == [17, 90_001]


def visits(passages: Passages, epoch: int) -> list[int]:
    """Document of every visit of an epoch, told by its length (all lengths must differ)."""

    class Whole:  # a generator that starts every passage at 0, so that it shows its document
        def integers(self, high):
            return 0

    return [len(passages.draw(epoch, i, Whole())) for i in range(len(passages))]


def test_each_epoch_visits_documents_in_proportion_to_their_tokens(tokenized):
    passages = Passages(tokenized(7, 10, 19, 20, 9, 101), min_length=10, max_length=1000, seed=5)
    assert (passages.kept, passages.dropped) == (4, 2)
    assert len(passages) == 1 + 1 + 2 + 10
    expected = [10, 19, 20, 20, *[101] * 10]
    epochs = [visits(passages, epoch) for epoch in range(4)]
    assert all(sorted(order) == expected for order in epochs)
    assert len({tuple(order) for order in [expected, *epochs]}) == 5
    assert visits(passages, 1) == epochs[1]
    other = Passages(tokenized(7, 10, 19, 20, 9, 101), min_length=10, max_length=1000, seed=6)
    assert visits(other, 0) != epochs[0]


def test_a_passage_starts_anywhere_from_the_first_to_the_last_possible_token(tokenized):
    documents = tokenized(41)
    passages = Passages(documents, min_length=32, max_length=37, seed=0)
    text, counts = documents[0].tolist(), np.zeros(10, dtype=int)
    rng = np.random.default_rng(0)
    for _ in range(4000):
        passage = passages.draw(0, 0, rng).tolist()
        start = next(s for s in range(10) if text[s : s + 37] == passage)
        assert len(passage) == min(37, 41 - start) >= 32
        counts[start] += 1
    assert counts.min() > 320  # 400 expected, standard deviation 19: each end is as likely as the middle
    assert counts.max() < 480


def test_a_document_of_exactly_min_length_gives_itself(tokenized):
    documents = tokenized(12)
    passages = Passages(documents, min_length=12, max_length=12, seed=0)
    assert len(passages) == 1
    assert np.array_equal(passages.draw(3, 0, np.random.default_rng(1)), documents[0])


def test_draw_is_decided_by_epoch_example_and_generator_alone(tokenized):
    passages = Passages(tokenized(50, 200, 90), min_length=16, max_length=40, seed=1)
    wanted = passages.draw(2, 5, np.random.default_rng(9))
    passages.draw(0, 1, np.random.default_rng(4))
    assert np.array_equal(passages.draw(2, 5, np.random.default_rng(9)), wanted)
    rng, twin = np.random.default_rng(9), np.random.default_rng(9)
    passages.draw(2, 5, rng)
    twin.integers(10)
    assert rng.integers(1 << 60) == twin.integers(1 << 60)  # one number was taken


def test_from_start_every_document_is_visited_once_from_its_first_token(tokenized):
    documents = tokenized(7, 10, 19, 3, 101, 20)
    passages = Passages(documents, min_length=7, max_length=19, seed=5, from_start=True)
    assert (len(passages), passages.kept, passages.dropped) == (5, 5, 1)
    texts = [documents[i].tolist()[:19] for i in (0, 1, 2, 4, 5)]
    rng, orders = np.random.default_rng(9), []
    for epoch in range(6):
        found = [passages.draw(epoch, i, rng).tolist() for i in range(5)]
        assert sorted(found) == sorted(texts)
        orders.append(tuple(texts.index(each) for each in found))
    assert len(set(orders)) > 3  # each epoch in an order of its own
    assert rng.bit_generator.state == np.random.default_rng(9).bit_generator.state  # nothing was drawn
    back = pickle.loads(pickle.dumps(passages))
    assert back.draw(0, 3, rng).tolist() == passages.draw(0, 3, rng).tolist()
    with pytest.raises(IndexError, match="epoch of 5"):
        passages.draw(0, 5, rng)


@pytest.mark.parametrize("example", [-1, 5])
def test_a_visit_outside_the_epoch_is_refused(tokenized, example):
    with pytest.raises(IndexError, match="epoch of 5"):
        Passages(tokenized(53), min_length=10, max_length=10, seed=0).draw(
            0, example, np.random.default_rng(0)
        )


def test_another_process_draws_the_same_passages(tokenized, tmp_path):
    passages = Passages(tokenized(50, 333, 90, 4), min_length=16, max_length=40, seed=11)
    here = [passages.draw(e, i, np.random.default_rng([e, i])).tolist() for e in (0, 7) for i in range(20)]
    (tmp_path / "passages").write_bytes(pickle.dumps(passages))
    code = """if True:
        import json, pickle, sys
        import numpy as np
        passages = pickle.load(open(sys.argv[1], "rb"))
        assert "torch" not in sys.modules
        rows = [passages.draw(e, i, np.random.default_rng([e, i])) for e in (0, 7) for i in range(20)]
        print(json.dumps([row.tolist() for row in rows]))"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-c", code, str(tmp_path / "passages")]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == here


def test_the_pickle_leaves_the_cached_order_behind(tokenized):
    passages = Passages(tokenized(60_000), min_length=2, max_length=3, seed=0)
    passages.draw(0, 0, np.random.default_rng(0))
    assert len(pickle.dumps(passages)) < 20_000


def test_too_short_documents_and_impossible_lengths_are_told(tokenized):
    documents = tokenized(30, 99, 4)
    with pytest.raises(InputError) as caught:
        Passages(documents, min_length=100, max_length=200, seed=0)
    assert str(caught.value) == (
        "no document has the 100 tokens of min_length: the longest of 3 has 99; "
        "add longer documents or lower min_length"
    )
    for lengths in ((0, 5), (6, 5)):
        with pytest.raises(InputError, match="min_length"):
            Passages(documents, min_length=lengths[0], max_length=lengths[1], seed=0)


def test_held_out_documents_are_long_disjoint_and_chosen_by_the_seed(tokenized):
    lengths = [*range(20, 31), 3, 5]
    documents = tokenized(*lengths)
    chosen = set()
    for seed in range(20):
        train, held_out = split_documents(documents, held_out=3, min_length=21, seed=seed)
        assert len(held_out) == 3
        assert held_out.lengths.min() >= 21
        assert sorted([*train.lengths, *held_out.lengths]) == sorted(lengths)
        assert all(len(held_out[i]) == held_out.lengths[i] for i in range(3))
        chosen.add(tuple(held_out.lengths.tolist()))
    assert len(chosen) > 10
    again = split_documents(documents, held_out=3, min_length=21, seed=19)[1]
    assert tuple(again.lengths.tolist()) == tuple(held_out.lengths.tolist())


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (2, 2), (99, 2), (-1, 0)])
def test_never_more_than_half_of_the_eligible_documents_are_held_out(tokenized, asked, given):
    documents = tokenized(10, 11, 12, 13, 14, 1)
    train, held_out = split_documents(documents, held_out=asked, min_length=10, seed=0)
    assert (len(train), len(held_out)) == (6 - given, given)
    single = split_documents(tokenized(10, 1), held_out=1, min_length=10, seed=0)
    assert [len(part) for part in single] == [2, 0]
