"""What an extension would take, before anything is trained: memory, time and cost, from sizes alone.

In: the sizes of a model (`skipwise.models.size`), a target, a GPU. Out: PoSE (rows of the train length)
beside training at full length (rows of the target length), each for every weight, LoRA and QLoRA; and the
memory of inference at the target. Both trainings have as many steps and rows in a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from skipwise.errors import InputError
from skipwise.plan.hardware import USABLE, Hardware
from skipwise.plan.memory import (
    Inference,
    Memory,
    Method,
    Settings,
    inference_memory,
    trained_parameters,
    training_memory,
)
from skipwise.plan.speed import model_flops, step_seconds

if TYPE_CHECKING:
    from skipwise.models.size import ModelSize

__all__ = ["GIB", "Plan", "Run", "make_plan"]

RowKind = Literal["pose", "full-length"]
GIB = 1024**3
_MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Run:
    """One training: what it needs, and how long it takes if it fits.

    way_out: what would make it fit, in words; None if it fits or nothing does. seconds: of all steps. cost:
    US dollars. mfu: the share of the GPUs' speed that the method's own operations take, without those that
    gradient checkpointing repeats.
    """

    rows: RowKind
    settings: Settings
    trained_parameters: int
    memory: Memory
    fits: bool
    way_out: str | None
    seconds: float
    cost: float
    mfu: float

    def to_json(self) -> dict[str, Any]:
        """In plain values; memory in bytes."""
        settings = asdict(self.settings)
        memory = asdict(self.memory)
        return {
            "rows": self.rows,
            **{key: settings.pop(key) for key in ("method", "row_length")},
            "settings": settings,
            "trained_parameters": self.trained_parameters,
            "peak_at": memory.pop("moment"),
            "memory": memory | {"total": self.memory.total},
            "fits": self.fits,
            "way_out": self.way_out,
            "seconds": self.seconds,
            "cost": self.cost,
            "mfu": self.mfu,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that `make_plan` found. Lengths in tokens, price in US dollars a GPU and hour."""

    size: ModelSize
    hardware: Hardware
    gpus: int
    price: float
    target_length: int
    train_length: int
    steps: int
    rows_per_step: int
    runs: tuple[Run, ...]
    inference: Inference

    @property
    def inference_fits(self) -> bool:
        """Whether weights and the cache of one sequence fit on the GPUs, evenly divided."""
        return self.inference.total <= self.gpus * usable(self.hardware)

    def to_json(self) -> dict[str, Any]:
        """In plain values; memory in bytes."""
        inference = asdict(self.inference) | {"total": self.inference.total, "fits": self.inference_fits}
        return {
            "family": self.size.family,
            "parameters": self.size.parameters,
            "traced": self.size.traced,
            "hardware": asdict(self.hardware) | {"gpus": self.gpus, "usable_bytes": usable(self.hardware)},
            "price": self.price,
            "target_length": self.target_length,
            "train_length": self.train_length,
            "steps": self.steps,
            "rows_per_step": self.rows_per_step,
            "runs": [each.to_json() for each in self.runs],
            "inference": inference,
        }


def make_plan(
    size: ModelSize,
    *,
    target_length: int,
    train_length: int,
    hardware: Hardware,
    settings: Settings,
    steps: int = 200,
    rows_per_step: int = 16,
    price: float | None = None,
    gradient_checkpointing: bool | None = None,
) -> Plan:
    """Plan all six trainings.

    Of ``settings``, method, row length, accumulation and gradient checkpointing are filled in.
    ``gradient_checkpointing`` None: only where it does not fit without. Raises InputError when the rows of a
    step cannot be divided.
    """
    together = settings.micro_batch * settings.gpus
    if rows_per_step % together:
        raise InputError(
            f"{rows_per_step} rows in a step cannot be divided over {settings.gpus} GPUs in micro-batches of "
            f"{settings.micro_batch}: make them a multiple of {together}"
        )
    price = hardware.price if price is None else price
    micro_batches = rows_per_step // together
    lengths: dict[RowKind, int] = {"pose": train_length, "full-length": target_length}
    runs = []
    for method in get_args(Method):
        for rows, length in lengths.items():
            wanted = replace(
                settings, method=method, row_length=length, accumulates=micro_batches > 1,
                gradient_checkpointing=bool(gradient_checkpointing),
            )  # fmt: skip
            if gradient_checkpointing is None and not _fits(size, wanted, hardware):
                wanted = replace(wanted, gradient_checkpointing=True)
            runs.append(_run(size, rows, wanted, hardware, micro_batches, steps, price))
    return Plan(
        size=size,
        hardware=hardware,
        gpus=settings.gpus,
        price=price,
        target_length=target_length,
        train_length=train_length,
        steps=steps,
        rows_per_step=rows_per_step,
        runs=tuple(runs),
        inference=inference_memory(size, target_length),
    )


def usable(hardware: Hardware) -> float:
    """Bytes of one GPU that tensors can have."""
    return USABLE * hardware.memory * GIB


def _fits(size: ModelSize, settings: Settings, hardware: Hardware) -> bool:
    return training_memory(size, settings).total <= usable(hardware)


def _run(
    size: ModelSize,
    rows: RowKind,
    settings: Settings,
    hardware: Hardware,
    micro_batches: int,
    steps: int,
    price: float,
) -> Run:
    memory = training_memory(size, settings)
    fits = memory.total <= usable(hardware)
    each = step_seconds(size, settings, hardware, micro_batches)
    speed = micro_batches * model_flops(size, settings) / each
    return Run(
        rows=rows,
        settings=settings,
        trained_parameters=trained_parameters(size, settings),
        memory=memory,
        fits=fits,
        way_out=None if fits else _way_out(size, settings, hardware, micro_batches),
        seconds=steps * each,
        cost=steps * each / 3600 * settings.gpus * price,
        mfu=speed / (hardware.tflops * 1e12),
    )


def _way_out(size: ModelSize, settings: Settings, hardware: Hardware, micro_batches: int) -> str | None:
    """The first change of the settings that makes them fit, in words; None if there is none."""
    for words, total in smaller(size, settings, micro_batches):
        if total <= usable(hardware):
            return f"{words}: {total / GIB:.1f} GiB"
    return None


def smaller(size: ModelSize, settings: Settings, micro_batches: int) -> Iterator[tuple[str, float]]:
    """Changes of the settings, in words, that need less, and the bytes that each of them then takes.

    Each holds those before it too; the last are other methods, and more GPUs.
    """
    checkpointed = replace(settings, gradient_checkpointing=True)
    for words, changed in _changes(checkpointed, micro_batches):
        yield words, training_memory(size, changed).total


def _changes(settings: Settings, micro_batches: int) -> Iterator[tuple[str, Settings]]:
    """Settings that need less, those first that change least."""
    yield "gradient checkpointing", settings
    smallest = replace(settings, micro_batch=1)
    yield "micro_batch 1", smallest
    if settings.method == "full":
        half = replace(smallest, weights="bfloat16")
        yield "bfloat16 weights", half
        yield "bfloat16 weights and 8-bit AdamW", replace(half, optimizer="adamw-8bit")
        yield "LoRA", replace(smallest, method="lora")
    if settings.method != "qlora":
        yield "QLoRA", replace(smallest, method="qlora")
    gpus, most = settings.gpus * 2, min(_MOST_GPUS, settings.gpus * settings.micro_batch * micro_batches)
    while gpus <= most:
        yield f"{gpus} GPUs", replace(smallest, gpus=gpus)
        gpus *= 2
