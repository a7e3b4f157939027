"""Streams: the same rows for any split of the documents, exact resume, and a stock Trainer on top."""

import json
import pickle
from collections import Counter
from functools import partial
from itertools import chain, islice, pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import IterableDataset as HubStream
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import Trainer, TrainingArguments

from skipwise.data.chat import Turns
from skipwise.data.collate import SkipCollator
from skipwise.data.skips import Contiguous, PoSE
from skipwise.data.stream import RowStream

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata 0.11 calls it
]

SAMPLER = PoSE(7, 31)
LENGTHS = (5, 31, 20, 3, 7, 6, 103, 14, 27, 0, 55, 16, 8)
ROWS = sum(n // 7 for n in LENGTHS)
DOCUMENTS = [np.random.default_rng(n).integers(0, 97, n).tolist() for n in LENGTHS]


def content(row):
    return tuple(row.token_ids.tolist()), tuple(row.position_ids.tolist())


def contents(rows):
    return [content(row) for row in rows]


def numbers(shards):
    for shard in shards:
        for number in shard:
            yield {"number": number}


def mapped(shards):
    """A generator's stream in ``shards`` parts, tokenized on the fly, columns unknown to `datasets`."""
    parts = [list(range(shard, len(DOCUMENTS), shards)) for shard in range(shards)]
    stream = HubStream.from_generator(numbers, gen_kwargs={"shards": parts})
    return stream.map(lambda document: {"input_ids": DOCUMENTS[document["number"]]})


def batch_mapped(shards):
    stream = Dataset.from_dict({"number": range(len(DOCUMENTS))}).to_iterable_dataset(num_shards=shards)

    def tokenize(batch):
        return {"input_ids": [DOCUMENTS[number] for number in batch["number"]]}

    return stream.map(tokenize, batched=True, batch_size=3, remove_columns=["number"])


def arrow(shards):
    return Dataset.from_dict({"input_ids": DOCUMENTS}).to_iterable_dataset(num_shards=shards)


def as_numpy(shards):
    return arrow(shards).with_format("numpy")


def plain(shards):
    return [{"input_ids": tokens} for tokens in DOCUMENTS]


KINDS = [mapped, batch_mapped, arrow, as_numpy, plain]


def make_stream(kind=arrow, shards=4, *, epoch=0, node=(0, 1), seed=5, block=3, endless=False):
    documents = kind(shards) if node[1] == 1 else split_dataset_by_node(kind(shards), *node)
    stream = RowStream(documents, SAMPLER, seed=seed, block=block, endless=endless)
    stream.set_epoch(epoch)
    return stream


def loader_of(stream, workers, kind=DataLoader, **options):
    return kind(stream, batch_size=2, num_workers=workers, collate_fn=contents, **options)


def rows_of(batches):
    return list(chain.from_iterable(batches))


def read(stream, workers=0):
    return rows_of(loader_of(stream, workers))


def read_failing(stream, workers):
    """What `read` does, and no worker is left for the garbage collector, which waits for it for seconds."""
    reading = iter(loader_of(stream, workers))
    try:
        return rows_of(reading)
    finally:
        if workers:
            reading._shutdown_workers()


# The rows


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_visits_every_document_as_often_as_it_is_long(kind):
    rows = list(make_stream(kind))
    assert len(rows) == ROWS
    texts = [" ".join(map(str, tokens)) for tokens in DOCUMENTS]
    visits = Counter()
    for row in rows:
        chunks = [" ".join(map(str, chunk)) for chunk in np.split(row.token_ids, [row.chunks.lengths[0]])]
        (home,) = [i for i, text in enumerate(texts) if all(chunk in text for chunk in chunks)]
        visits[home] += 1
    assert visits == {i: n // 7 for i, n in enumerate(LENGTHS) if n >= 7}


def test_the_kind_of_documents_does_not_matter():
    assert len({frozenset(read(make_stream(kind))) for kind in KINDS}) == 1
    assert len(set(read(make_stream()))) == ROWS


def test_passages_start_anywhere_and_no_later_than_a_whole_row_allows():
    document = list(range(25))
    stream = RowStream([{"input_ids": document}], Contiguous(7, 7), seed=0)
    starts = Counter()
    for epoch in range(400):
        stream.set_epoch(epoch)
        rows = list(stream)
        assert len(rows) == 3
        starts.update(int(row.token_ids[0]) for row in rows)
    assert set(starts) == set(range(19))
    # chi-square with 18 degrees of freedom: below 42.3 but for one seed in a thousand
    assert sum((starts[i] - 1200 / 19) ** 2 / (1200 / 19) for i in range(19)) < 42.3


def test_conversations_are_read_once_and_from_their_start():
    documents = [{"input_ids": [9, *range(10, 10 + n)]} for n in (3, 40, 7)]
    stream = RowStream(documents, Turns(8, 64, turn_starts=[9]), seed=2, from_start=True)
    for epoch in range(3):
        stream.set_epoch(epoch)
        found = sorted((row.token_ids.tolist() for row in stream), key=len)
        assert found == [[9, 10, 11, 12], *[[9, *range(10, 17)]] * 2]


def test_passages_are_as_long_as_the_sampler_can_use(monkeypatch):
    met = []
    monkeypatch.setattr(PoSE, "sample", lambda self, tokens, rng: met.append(len(tokens)))
    list(make_stream())
    assert len(met) == ROWS
    assert (min(met), max(met)) == SAMPLER.passage_length


def test_seeds_epochs_and_visits_differ_and_repeat():
    runs = [read(make_stream(epoch=epoch, seed=seed)) for epoch in (0, 1, 7) for seed in (0, 5)]
    assert len(set(rows_of(runs))) >= 6 * ROWS - 5  # the shortest documents leave little to draw
    assert read(make_stream(epoch=7, seed=5)) == runs[-1]
    stream = make_stream()
    assert read(stream) == read(stream)


def test_equal_documents_have_equal_rows_and_one_token_changes_them():
    first, again, other = ([1] * 20, [1] * 20, [1] * 19 + [2])
    places = [
        {positions for _, positions in contents(RowStream([{"input_ids": ids}], SAMPLER, seed=0))}
        for ids in (first, again, other)
    ]
    assert places[0] == places[1]
    assert places[0].isdisjoint(places[2])


def test_rows_of_a_block_are_shuffled_together_and_blocks_follow_each_other():
    documents = [{"input_ids": [i] * 70} for i in range(8)]
    homes = [int(row.token_ids[0]) for row in RowStream(documents, SAMPLER, seed=1, block=4)]
    assert set(homes[:40]) == {0, 1, 2, 3}
    assert homes.count(0) == 10
    neighbours = sum(first == second for first, second in pairwise(homes))
    assert neighbours < 40  # 79 pairs: 18 expected when shuffled, 72 when not


# Nodes and workers


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(("nodes", "epoch"), [(1, 2), (2, 0), (3, 0), (3, 1)])
def test_any_split_has_the_same_rows(nodes, epoch, workers):
    found = Counter()
    for node in range(nodes):
        found.update(read(make_stream(mapped, 4, epoch=epoch, node=(node, nodes)), workers))
    assert found == Counter(read(make_stream(plain, epoch=epoch)))


@pytest.mark.parametrize("kind", KINDS)
def test_more_workers_than_shards(kind):
    assert Counter(read(make_stream(kind, 2), 3)) == Counter(read(make_stream(plain)))


@pytest.mark.parametrize("kind", [mapped, arrow, plain])
def test_a_new_epoch_reaches_persistent_workers(kind):
    stream = make_stream(kind)
    loader = loader_of(stream, 2, persistent_workers=True)
    for epoch in (0, 1, 5, 0):
        stream.set_epoch(epoch)
        assert Counter(rows_of(loader)) == Counter(read(make_stream(plain, epoch=epoch)))


class Dated:
    """Documents that say of which epoch they are."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([{"input_ids": [self.epoch] * 9}] * 4)


def test_the_documents_are_told_the_epoch():
    stream = RowStream(Dated(), SAMPLER, seed=0)
    loader = loader_of(stream, 2, persistent_workers=True)
    for epoch in (2, 0, 3):
        stream.set_epoch(epoch)
        assert {token for tokens, _ in rows_of(loader) for token in tokens} == {epoch}
    endless = RowStream(Dated(), SAMPLER, seed=0, endless=True)
    assert [int(row.token_ids[0]) for row in islice(endless, 9)] == [0] * 4 + [1] * 4 + [2]


def test_a_copy_has_the_same_rows_and_an_epoch_of_its_own():
    stream = make_stream(epoch=3)
    copy = pickle.loads(pickle.dumps(make_stream(plain, epoch=3)))
    assert set(contents(copy)) == set(contents(stream))
    loader = loader_of(copy, 2, persistent_workers=True)
    for epoch in (4, 5):
        copy.set_epoch(epoch)
        assert Counter(rows_of(loader)) == Counter(read(make_stream(epoch=epoch)))
    assert read(stream) == read(make_stream(epoch=3))


def test_the_callers_dataset_is_left_alone():
    documents = arrow(4)
    stream = RowStream(documents, SAMPLER, seed=5, block=3)
    stream.set_epoch(3)
    list(islice(stream, 20))
    stream.load_state_dict(stream.state_dict())
    assert len(list(stream)) == ROWS - 20
    assert [document["input_ids"] for document in documents] == DOCUMENTS


# Resume


def saved(state):
    """What comes back from a checkpoint file."""
    assert pickle.loads(pickle.dumps(state)) == state
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("kind", [mapped, batch_mapped, arrow, plain])
def test_resume_at_every_row(kind):
    whole = contents(make_stream(kind, epoch=2))
    interrupted = make_stream(kind, epoch=2)
    reading = iter(interrupted)
    for stop in range(ROWS + 1):
        resumed = make_stream(kind)
        resumed.load_state_dict(saved(interrupted.state_dict()))
        assert contents(resumed) == whole[stop:]
        assert contents(resumed) == whole  # the pass after
        next(reading, None)
    resumed.load_state_dict(saved(interrupted.state_dict()))
    assert contents(resumed) == []


@pytest.mark.parametrize("kind", [mapped, plain])
def test_an_endless_stream_is_epoch_after_epoch_and_resumes_in_any(kind):
    endless = make_stream(kind, epoch=1, endless=True)
    rows = contents(islice(endless, 3 * ROWS + 4))
    state = saved(endless.state_dict())
    for epoch in range(3):
        assert rows[epoch * ROWS :][:ROWS] == contents(make_stream(kind, epoch=epoch + 1))
    resumed = make_stream(kind, endless=True)
    resumed.load_state_dict(state)
    assert contents(islice(resumed, ROWS)) == contents(make_stream(kind, epoch=4))[4:] + contents(
        islice(make_stream(kind, epoch=5), 4)
    )


@pytest.mark.parametrize(
    ("kind", "node", "workers"),
    [
        (mapped, (1, 2), 0),
        (batch_mapped, (0, 1), 1),
        (mapped, (1, 3), 2),
        (arrow, (0, 1), 3),
        (plain, (0, 1), 0),
        (plain, (0, 1), 2),
    ],
)
def test_resume_through_a_stateful_loader(kind, node, workers):
    def make(epoch=0):
        stream = make_stream(kind, epoch=epoch, node=node)
        return stream, loader_of(stream, workers, StatefulDataLoader)

    whole = list(make(epoch=1)[1])
    for stop in (1, len(whole) - 2, len(whole)):
        _, loader = make(epoch=1)
        first = list(islice(loader, stop))
        state = saved(loader.state_dict())
        stream, loader = make()
        loader.load_state_dict(state)
        assert first + list(loader) == whole
    stream.set_epoch(2)
    assert list(loader) == list(make(epoch=2)[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_after_one_that_was_saved_at_its_end(workers):
    loader = loader_of(make_stream(plain, epoch=1), workers, StatefulDataLoader)
    assert len(rows_of(loader)) == ROWS
    state = saved(loader.state_dict())
    stream = make_stream(plain)
    loader = loader_of(stream, workers, StatefulDataLoader)
    loader.load_state_dict(state)
    stream.set_epoch(2)
    assert Counter(rows_of(loader)) == Counter(read(make_stream(epoch=2)))


@pytest.mark.parametrize("rows", [9, ROWS + 1])
def test_the_epoch_set_after_loading(rows):
    stream = make_stream(epoch=1)
    list(islice(stream, rows))
    later = make_stream()
    for epoch in (0, 1, 2):
        later.set_epoch(0)
        later.load_state_dict(stream.state_dict())
        later.set_epoch(epoch)
        whole = contents(make_stream(epoch=epoch))
        assert contents(later) == (whole[rows:] if epoch == 1 else whole)


def test_the_epoch_set_before_loading():
    stream, later = make_stream(epoch=1), make_stream(epoch=2)
    list(islice(stream, 9))
    later.load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="epoch = 2: must be the loaded state's 1; set_epoch goes back"):
        next(iter(later))
    later.load_state_dict(make_stream(epoch=1).state_dict())
    with pytest.raises(ValueError, match="epoch = 2: must be the loaded state's 1; set_epoch goes back"):
        next(iter(later))
    list(stream)  # to the end of epoch 1, which epoch 2 follows
    later.load_state_dict(stream.state_dict())
    assert contents(later) == contents(make_stream(epoch=2))


def test_a_state_that_does_not_belong_here():
    state = make_stream().state_dict()
    for changes, message in (
        ({"seed": 6}, "seed = 6: must be .* 5"),
        ({"block": 4}, "block = 4: must be .* 3"),
    ):
        with pytest.raises(ValueError, match=message):
            make_stream(**changes).load_state_dict(state)
    stream = make_stream()
    stream.load_state_dict(state)  # of the start, where everybody may begin
    assert Counter(read(stream, 2)) == Counter(read(make_stream()))
    list(islice(stream, 9))
    stream.load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="worker 0 of 2: must be worker 0 of 1"):
        read_failing(stream, 2)


# A stock Trainer


class Recorder(SkipCollator):
    def __init__(self):
        super().__init__()
        self.rows = []

    def __call__(self, rows):
        self.rows += contents(rows)
        return super().__call__(rows)


def run_trainer(model, folder, stream, workers=0, resume=None):
    arguments = TrainingArguments(
        str(folder),
        max_steps=26,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=4,
        logging_steps=1,
        use_cpu=True,
        dataloader_num_workers=workers,
        report_to=[],
        disable_tqdm=True,
    )
    collator = Recorder()
    trainer = Trainer(model, arguments, train_dataset=stream, data_collator=collator)
    trainer.train(resume_from_checkpoint=resume and f"{folder}/checkpoint-{resume}")
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    return losses, collator.rows, [weight.detach().clone() for weight in trainer.model.parameters()]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_stock_trainer_goes_through_the_epochs(make_model, tmp_path):
    losses, rows, _ = run_trainer(make_model(), tmp_path, make_stream())
    assert set(losses) == set(range(1, 27))
    assert rows[: 2 * ROWS] == contents(make_stream()) + contents(make_stream(epoch=1))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("checkpoint", "workers"), [(8, 0), (20, 0), (20, 2)])  # epoch 0, epoch 1
def test_a_resumed_trainer_sees_the_same_rows(make_model, tmp_path, workers, checkpoint):
    whole = run_trainer(make_model(), tmp_path, make_stream(endless=True), workers)
    resumed = run_trainer(make_model(seed=1), tmp_path, make_stream(endless=True), workers, checkpoint)
    assert len(whole[0]) == 26
    assert resumed[0] == whole[0]
    assert resumed[1] == whole[1]
    assert all(map(torch.equal, resumed[2], whole[2]))


# What goes wrong


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"ids": [1] * 9, "text": "a"}, "column = 'input_ids': must be one of the documents' ids, text"),
        ({"input_ids": "words"}, "must hold lists of integers, and document 2 has 'words'"),
        ({"input_ids": [0.5] * 9}, "must hold lists of integers, and document 2 has '.0.5, 0.5"),
        ({"input_ids": [True] * 9}, "must hold lists of integers, and document 2 has '.True"),
        ({"input_ids": [[1] * 9]}, "must hold lists of integers"),
        ({"input_ids": [[1], [2, 3]]}, "must hold lists of integers, and document 2 has '..1., .2, 3..'"),
        ({"input_ids": None}, "must hold lists of integers, and document 2 has 'None'"),
        ({"input_ids": 7}, "must hold lists of integers, and document 2 has '7'"),
    ],
)
def test_documents_that_are_none(document, message):
    with pytest.raises(ValueError, match=message):
        list(RowStream([{"input_ids": [1] * 9}, document], SAMPLER, seed=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": (d for d in [])}, "documents = a generator: must be something that can be read again"),
        ({"seed": -1}, "seed = -1: must be from 0 to"),
        ({"seed": 2**64}, "seed = 18446744073709551616: must be"),
        ({"block": 0}, "block = 0: must be at least 1 document"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(ValueError, match=message):
        RowStream(**{"documents": [], "sampler": SAMPLER, "seed": 0} | changes)


class ByWorker(IterableDataset):
    """A torch dataset that splits itself: ``lengths[i]`` are the documents of worker i."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def __iter__(self):
        info = get_worker_info()
        mine = self.lengths[info.id] if info else sum(self.lengths, ())
        yield from ({"input_ids": [1] * n} for n in mine)


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [ByWorker, partial(list)])
def test_no_document_is_long_enough(kind, workers, endless):
    short = ((3, 6), (5, 2), ())
    documents = ByWorker(*short) if kind is ByWorker else [{"input_ids": [1] * n} for n in sum(short, ())]
    if kind is ByWorker and workers in (1, 2):
        documents = ByWorker(*short[:workers])
    stream = RowStream(documents, SAMPLER, seed=0, endless=endless)
    # An endless worker may be through before another has begun, and knows of its own part only.
    message = "has the 7 tokens of a row: the longest has " + ("[2356]" if endless else "6")
    with pytest.raises(ValueError, match=message):
        read_failing(stream, workers)


def test_no_documents():
    with pytest.raises(ValueError, match="the longest has 0"):
        list(RowStream([], SAMPLER, seed=0))


@pytest.mark.parametrize("endless", [False, True])
def test_one_worker_may_have_nothing(endless):
    stream = RowStream(ByWorker((20, 9, 30), ()), SAMPLER, seed=0, endless=endless)
    assert len(rows_of(islice(loader_of(stream, 2), 4))) == (8 if endless else 7)


def test_one_worker_may_have_nothing_long():
    assert len(read(RowStream(ByWorker((20, 9, 30), (3, 6)), SAMPLER, seed=0), 2)) == 7
    stream = RowStream(ByWorker((20, 9, 30), (3, 6)), SAMPLER, seed=0, endless=True)
    with pytest.raises(ValueError, match=r"the part of worker 1 of 2 has .* the longest has 6"):
        read_failing(stream, 2)


def test_workers_take_turns():
    documents = [{"input_ids": [1] * n} for n in (20, 3)]
    stream = RowStream(documents, SAMPLER, seed=0)
    for epoch in range(4):
        stream.set_epoch(epoch)
        assert len(read(stream, 2)) == 2
    stream = RowStream(documents, SAMPLER, seed=0, endless=True)
    assert len(rows_of(islice(loader_of(stream, 2), 12))) == 24
