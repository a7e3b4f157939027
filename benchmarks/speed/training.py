"""A few optimizer steps through the engine, through stock `Trainer`, or in a bare loop; with a clock."""

from __future__ import annotations

import statistics
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from candidates import CompiledStochasticAdamW, choose_attention, to_fp8
from cases import Case, config_of, operations
from profiling import Profile, mark
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from skipwise.config import TrainingRecipe
from skipwise.data.collate import SkipCollator
from skipwise.data.passages import Passages, TokenizedDocuments
from skipwise.data.rows import Rows
from skipwise.data.skips import PoSE, Sampler
from skipwise.data.token_ids import token_table
from skipwise.models.probes import probe
from skipwise.models.repairs import repair
from skipwise.rope import extend_rope
from skipwise.train import engine
from skipwise.train.kernels import fast_kernels
from skipwise.train.optimizers import optimizer_for
from skipwise.train.trainer import SkipTrainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PEAK = 989e12
"""Dense bfloat16 operations of an H200 in a second, by its datasheet."""
GIB = 1024**3


def train(case: Case, folder: Path) -> dict[str, Any]:
    """Through `Trainer`: the engine's (as `skipwise train` runs it), or the stock one."""
    choose_attention(case.attention)
    model, rows = build(case), make_rows(case)
    clock = Clock(case)
    found: dict[str, Any] = {}
    if case.kind == "plain":
        trainer: Any = plain_trainer(case, model, rows, folder, clock)
        trainer.train()
    else:
        found["probes"] = "; ".join(probe(model, case.target).failures())
        trainer = run_engine(case, model, rows, folder, clock, probed=not (case.fp8 and found["probes"]))
    found |= clock.found(case, trainer.args.per_device_train_batch_size)
    if case.text == "repository":  # it changes: curves of two runs compare only if this is the same
        found["text_crc32"] = zlib.crc32(b"".join(repository_text()))
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    return found | {"losses": [round(each, 4) for each in losses]}


def build(case: Case, config: Any = None) -> Any:
    """The model with random weights, made on the device; the engine's with its repairs."""
    config = config or extend_rope(config_of(case), case.target, "yarn")
    dtype = getattr(torch, case.weights)
    torch.manual_seed(0)
    with DEVICE:
        first = dtype if case.shape == "7b" else torch.float32  # small ones begin alike in either precision
        model = AutoModelForCausalLM.from_config(config, dtype=first, attn_implementation="sdpa").to(dtype)
    model.train()
    if case.kind == "plain":
        return model
    if case.fp8 and case.fp8 != "recipe":
        to_fp8(model, case.fp8)
    repair(model)
    model.config.use_cache = False
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def make_rows(case: Case, sampler: Sampler | None = None, steps: int = 0) -> Rows:
    """Rows as `skipwise train` draws them, of random tokens or of this repository's text in bytes."""
    sampler = sampler or PoSE(case.row_length, case.target)
    shortest, longest = sampler.passage_length
    passages = Passages(documents(case), min_length=shortest, max_length=longest, seed=0)
    count = (steps or case.warm + case.steps + case.profile) * case.rows
    return Rows(passages, sampler, count=count, seed=0)


@cache
def documents(case: Case) -> TokenizedDocuments:
    """Sixteen documents of a million tokens and a bit; of text, one a folder."""
    if case.text == "repository":
        found = [np.frombuffer(each, np.uint8).astype(np.int32) for each in repository_text()]
    else:
        random, vocabulary = np.random.default_rng(0), config_of(case).vocab_size
        found = [random.integers(vocabulary, size=2**20 + 1, dtype=np.int32) for _ in range(16)]
    return TokenizedDocuments(token_table(found, "input_ids"))


@cache
def repository_text() -> list[bytes]:
    """Code and pages of this repository, one text a folder."""
    folders = [Path(__file__).parents[2] / name for name in ("src", "docs", "tests", "benchmarks")]
    return [b"\n".join(file.read_bytes() for file in _files(folder)) for folder in folders]


def _files(folder: Path) -> list[Path]:
    return sorted(each for kind in ("*.py", "*.md") for each in folder.rglob(kind))


def plain_trainer(case: Case, model: Any, rows: Rows, folder: Path, clock: Clock) -> Trainer:
    """What most people run: `Trainer`'s defaults, bfloat16, SDPA, gradient checkpointing, all logits."""
    on_gpu = DEVICE.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=case.warm + case.steps + case.profile,
        per_device_train_batch_size=int(case.micro_batch),
        gradient_accumulation_steps=case.rows // int(case.micro_batch),
        learning_rate=case.learning_rate,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        bf16=case.weights == "float32" and on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=case.checkpointing,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # rows are drawn at random already; loss curves need one order
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    made = {"model": model, "args": arguments, "train_dataset": rows, "data_collator": SkipCollator()}
    return timed(Trainer, clock)(**made, callbacks=[clock])


def run_engine(case: Case, model: Any, rows: Rows, folder: Path, clock: Clock, *, probed: bool) -> Any:
    """`skipwise.train.engine.train`, all of it but the checkpoints: its trainer afterwards."""
    made = []

    class Watched(timed(SkipTrainer, clock)):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.add_callback(clock)
            made.append(self)

        def _save_checkpoint(self, *_: Any) -> None:  # 40 GB that nobody reads
            pass

    engine.SkipTrainer = Watched
    engine.optimizer_for = lambda model, recipe: choose_optimizer(case, model, recipe)
    if not probed:
        engine.ProbeFirst = lambda *_, **__: TrainerCallback()
    engine.train(model, rows, recipe_of(case), folder, seed=0)
    return made[0]


def timed(trainer: type[Trainer], clock: Clock) -> type[Trainer]:
    """A trainer of that kind; ``clock`` is told how long it waits for the batches of each step."""

    class Timed(trainer):  # type: ignore[misc, valid-type]
        def get_batch_samples(self, *args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            found = super().get_batch_samples(*args, **options)
            clock.waited.append(time.perf_counter() - began)
            return found

    return Timed


def recipe_of(case: Case) -> TrainingRecipe:
    """The case in the words of a recipe."""
    return TrainingRecipe(
        steps=case.warm + case.steps + case.profile,
        rows_per_step=case.rows,
        micro_batch=case.micro_batch,
        learning_rate=case.learning_rate,
        weights=case.weights,
        optimizer="adamw-8bit" if case.optimizer == "8bit" else "adamw",
        gradient_checkpointing=case.checkpointing,
        liger=case.liger,
        logits_chunk=case.logits_chunk,
        compile=case.compile,
        fp8=case.fp8 == "recipe",
        workers=case.workers,
        report_to=(),
        save_every=10**6,
    )


def choose_optimizer(case: Case, model: Any, recipe: TrainingRecipe) -> Any:
    """As `skipwise.train.optimizers.optimizer_for`, for the case."""
    if case.optimizer == "fused":
        return None
    if case.optimizer == "compiled":
        return CompiledStochasticAdamW, {"lr": recipe.learning_rate}
    return optimizer_for(model, recipe)


class Clock(TrainerCallback):
    """When each optimizer step was done on the GPU; its memory; the profiler for the last ones."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.ends: list[float] = []
        self.waited: list[float] = []
        self.window = [0.0, 0.0]
        self.memory = {"peak_gib": 0.0, "reserved_gib": 0.0}
        self.profile: Profile | None = None

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Where the optimizer begins, for the profiler."""
        if self.profile:
            mark()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Read the clock when the device is done."""
        if self.profile:
            mark()
        synchronize()
        self.ends.append(time.perf_counter())
        done, case = len(self.ends), self.case
        if done == case.warm:
            self.window[0] = time.time()
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        if done == case.warm + case.steps:
            self.window[1] = time.time()
            if DEVICE.type == "cuda":
                peak, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
                self.memory = {"peak_gib": peak / GIB, "reserved_gib": held / GIB}
            if case.profile:
                self.profile = Profile()
        if self.profile and done == case.warm + case.steps + case.profile:
            self.profile.stop()

    def found(self, case: Case, micro_batch: int) -> dict[str, Any]:
        """Of the measured steps: medians, speed, the share of waiting."""
        measured = slice(case.warm, case.warm + case.steps)
        steps = np.diff(self.ends[case.warm - 1 : case.warm + case.steps]).tolist()
        waited = self.waited[measured]
        found = speeds(case, steps) | self.memory | {"micro_batch": micro_batch, "window": self.window}
        found |= {"waiting": sum(waited) / sum(steps), "first_step_seconds": np.diff(self.ends[:2]).tolist()}
        return found | (self.profile.found(case.profile) if self.profile else {})


def speeds(case: Case, steps: list[float]) -> dict[str, Any]:
    """Median step, tokens/s, and the share of the chip's speed in both ways of counting."""
    seconds = statistics.median(steps)
    tokens = case.rows * case.row_length
    found: dict[str, Any] = {"steps": steps, "step_seconds": seconds, "tokens_per_second": tokens / seconds}
    counted = operations(case)
    for name, key in (("strict", "mfu"), ("usual", "mfu_usual")):
        speed = counted[name] * tokens / seconds
        found |= {f"tflops_{name}": speed / 1e12, key: speed / PEAK}
    return found | {"operations_per_token": counted}


def loop(case: Case) -> dict[str, Any]:
    """The engine's kernels and optimizer without `Trainer`: what it costs is the difference."""
    choose_attention(case.attention)
    model, rows, recipe = build(case), make_rows(case), recipe_of(case)
    failures = "; ".join(probe(model, case.target).failures())
    count = case.rows // int(case.micro_batch)
    with fast_kernels(model, recipe, DEVICE, case.row_length):
        chosen = choose_optimizer(case, model, recipe)
        optimizer = chosen[0](model.parameters(), **chosen[1]) if chosen else None
        assert optimizer is not None
        clock = Clock(case)
        for step in range(case.warm + case.steps):
            batches = [on_device(batch) for batch in micro_batches(case, rows, step, count)]
            clock.waited.append(0.0)
            one_step(model, optimizer, batches)
            clock.on_step_end()
    return {"probes": failures} | clock.found(case, int(case.micro_batch))


def micro_batches(case: Case, rows: Rows, step: int, count: int) -> list[dict[str, torch.Tensor]]:
    """The collated micro-batches of a step."""
    size, collate = case.rows // count, SkipCollator()
    first = step * case.rows
    return [collate([rows[first + part * size + place] for place in range(size)]) for part in range(count)]


def on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch where the model is."""
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def one_step(model: Any, optimizer: Any, batches: list[dict[str, torch.Tensor]]) -> None:
    """Forward, backward, clipping, update."""
    items = torch.stack([(batch["labels"][:, 1:] != -100).sum() for batch in batches]).sum()
    for batch in batches:
        model(**batch, num_items_in_batch=items, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def synchronize() -> None:
    """Wait until the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
