"""GPUs: what their makers' datasheets say, and a price that is only an assumption.

Speed is that of dense bfloat16 matrix products with float32 sums; memory is in GiB, as the driver counts what
the datasheets call GB.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from skipwise.errors import InputError


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU. tflops: dense bfloat16. memory: GiB. bandwidth: its, GB/s. price: US dollars an hour."""

    name: str
    title: str
    tflops: float
    memory: float
    bandwidth: float
    price: float
    source: str


HARDWARE = {
    each.name: each
    for each in (
        Hardware("b200", "B200", 2_250, 180, 7_700, 5.5, "NVIDIA DGX B200 datasheet, an eighth"),
        Hardware("h200", "H200", 989, 141, 4_800, 3.5, "NVIDIA H200 datasheet, SXM"),
        Hardware("h100", "H100", 989, 80, 3_350, 2.5, "NVIDIA H100 datasheet, SXM"),
        Hardware("h100-pcie", "H100 PCIe", 756, 80, 2_000, 2.25, "NVIDIA H100 datasheet, PCIe"),
        Hardware("a100-80g", "A100 80 GB", 312, 80, 2_039, 1.75, "NVIDIA A100 datasheet, SXM"),
        Hardware("a100-40g", "A100 40 GB", 312, 40, 1_555, 1.25, "NVIDIA A100 datasheet, SXM"),
        Hardware("l40s", "L40S", 362, 48, 864, 1.0, "NVIDIA L40S datasheet"),
        Hardware("l4", "L4", 121, 24, 300, 0.6, "NVIDIA L4 datasheet"),
        Hardware("5090", "RTX 5090", 209.5, 32, 1_792, 0.75, "NVIDIA RTX Blackwell whitepaper"),
        Hardware("4090", "RTX 4090", 165.2, 24, 1_008, 0.5, "NVIDIA Ada whitepaper"),
        Hardware("3090", "RTX 3090", 71, 24, 936, 0.3, "NVIDIA GA102 whitepaper"),
        Hardware("mi300x", "MI300X", 1_307, 192, 5_300, 2.5, "AMD MI300X datasheet"),
    )
}

USABLE = 0.95
"""Share of the memory that tensors can have: the rest is the driver's, and gaps between tensors."""


def find_hardware(name: str) -> Hardware:
    """The GPU of that name. Raises InputError, with the nearest name, if there is none."""
    found = HARDWARE.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), HARDWARE, 1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"--hardware {name}: {hint}known are {', '.join(HARDWARE)}")
    return found


def hardware_called(device: str) -> Hardware | None:
    """The GPU that a driver calls so, such as ``NVIDIA A100-SXM4-80GB``; None if it is not in the table."""
    words = device.upper().replace("-", " ").replace("GEFORCE", "").split()
    wanted = {
        "a100-80g": {"A100", "80GB"},
        "a100-40g": {"A100", "40GB"},
        "h100-pcie": {"H100", "PCIE"},
    }
    for name in sorted(HARDWARE, key=lambda name: -len(wanted.get(name, ()))):
        if wanted.get(name, {name.upper()}) <= set(words):
            return HARDWARE[name]
    return None
