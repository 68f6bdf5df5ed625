"""What GPUs and the links between them can do, from the makers' data sheets.

Rates are peaks: of dense products, half of what a sheet gives "with sparsity"; of a link, in one direction, half of
what a sheet gives as total. Where a model has several forms, it is the one of the usual server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ecgfm.errors import ConfigError

PCIE_3_GB_S = 16.0
PCIE_4_GB_S = 32.0
PCIE_5_GB_S = 64.0
"""Sixteen lanes, one direction."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    bfloat16_tflops: float
    """Dense bfloat16 products with float32 sums, in 10^12 operations a second."""
    float32_tflops: float
    """Float32 products without tensor cores, which is what torch does unless it is told otherwise."""
    memory_gb: float
    """In 10^9 bytes."""
    bandwidth_gb_s: float
    """Of that memory, in 10^9 bytes a second."""
    node_gb_s: float
    """To the other GPUs of its node, in 10^9 bytes a second and direction: NVLink, Infinity Fabric, or PCIe."""
    host_gb_s: float = PCIE_4_GB_S
    """From the host's memory."""


def _gpu(
    bfloat16: float, float32: float, memory: float, bandwidth: float, node: float, host: float = PCIE_4_GB_S
) -> Gpu:
    return Gpu(
        bfloat16_tflops=bfloat16,
        float32_tflops=float32,
        memory_gb=memory,
        bandwidth_gb_s=bandwidth,
        node_gb_s=node,
        host_gb_s=host,
    )


GPUS = {
    "A10": _gpu(125.0, 31.2, 24, 600, PCIE_4_GB_S),
    "A30": _gpu(165.0, 10.3, 24, 933, PCIE_4_GB_S),
    "A40": _gpu(149.7, 37.4, 48, 696, PCIE_4_GB_S),
    "A100": _gpu(312.0, 19.5, 80, 2039, 300),
    "A100 40GB": _gpu(312.0, 19.5, 40, 1555, 300),
    "A800": _gpu(312.0, 19.5, 80, 2039, 200),
    "B200": _gpu(2250.0, 75.0, 180, 7700, 900, PCIE_5_GB_S),
    "GH200": _gpu(989.4, 67.0, 96, 4000, 450, 450),  # NVLink to its own host, too
    "H100": _gpu(989.4, 67.0, 80, 3350, 450, PCIE_5_GB_S),
    "H100 NVL": _gpu(835.5, 60.0, 94, 3900, PCIE_5_GB_S, PCIE_5_GB_S),  # bridges join pairs only
    "H100 PCIe": _gpu(756.0, 51.0, 80, 2000, PCIE_5_GB_S, PCIE_5_GB_S),
    "H200": _gpu(989.4, 67.0, 141, 4800, 450, PCIE_5_GB_S),
    "H200 NVL": _gpu(835.5, 60.0, 141, 4800, PCIE_5_GB_S, PCIE_5_GB_S),
    "H800": _gpu(989.4, 67.0, 80, 3350, 200, PCIE_5_GB_S),
    "L4": _gpu(121.0, 30.3, 24, 300, PCIE_4_GB_S),
    "L40": _gpu(181.0, 90.5, 48, 864, PCIE_4_GB_S),
    "L40S": _gpu(362.0, 91.6, 48, 864, PCIE_4_GB_S),
    "RTX 3090": _gpu(71.0, 35.6, 24, 936, PCIE_4_GB_S),
    "RTX 4090": _gpu(165.2, 82.6, 24, 1008, PCIE_4_GB_S),
    "RTX A6000": _gpu(154.8, 38.7, 48, 768, PCIE_4_GB_S),
    "MI300X": _gpu(1307.4, 163.4, 192, 5300, 448, PCIE_5_GB_S),
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """What joins nodes."""

    gb_s: float
    """In 10^9 bytes a second and direction."""
    of: Literal["GPU", "node"]
    """Whether each GPU has such a link, as with a network card beside each, or all of a node share it."""
    latency_us: float
    """Of one message, in microseconds, the software of a collective included."""

    def gpu_gb_s(self, gpus_per_node: int) -> float:
        """Return what a GPU has while all of its node send."""
        return self.gb_s if self.of == "GPU" else self.gb_s / gpus_per_node


NETWORKS = {
    "infiniband-800": Network(gb_s=100.0, of="GPU", latency_us=5.0),
    "infiniband-400": Network(gb_s=50.0, of="GPU", latency_us=5.0),
    "infiniband-200": Network(gb_s=25.0, of="GPU", latency_us=5.0),
    "ethernet-400": Network(gb_s=50.0, of="node", latency_us=30.0),
    "ethernet-100": Network(gb_s=12.5, of="node", latency_us=30.0),
    "ethernet-25": Network(gb_s=3.125, of="node", latency_us=30.0),
    "ethernet-10": Network(gb_s=1.25, of="node", latency_us=30.0),
}
"""By the gigabits a second of one port: of InfiniBand one for each GPU, as in the makers' reference designs; of
Ethernet one for a node. Latencies are of the usual size, and count for nothing but small messages."""
NODE_LATENCY_US = 3.0
"""Of one message between GPUs of a node."""


def gpu_name(device_name: str) -> str | None:
    """Return the name in `GPUS` of a device, such as "NVIDIA H100 80GB HBM3"; None of a slice of one, or if unknown."""
    words = device_name.upper().replace("-", " ").split()
    if "MIG" in words:
        return None
    # The longest name that fits: an "H100 PCIe" is slower than an "H100".
    for name in sorted(GPUS, key=len, reverse=True):
        if set(name.upper().split()) <= set(words):
            return name
    return None


def peak_tflops(device_name: str) -> float | None:
    """Return the bfloat16 peak of a device that is known by name; None for a slice of one."""
    name = gpu_name(device_name)
    return None if name is None else GPUS[name].bfloat16_tflops


def gpu(name: str) -> Gpu:
    """Return a GPU by its name.

    Raises:
        ConfigError: It is not in the table.
    """
    known = gpu_name(name)
    if known is None:
        raise ConfigError(f"--gpu {name!r} is not known; there are {', '.join(GPUS)}")
    return GPUS[known]


def network(name: str) -> Network:
    """Return what joins nodes, by its name.

    Raises:
        ConfigError: It is not in the table.
    """
    if name not in NETWORKS:
        raise ConfigError(f"--network {name!r} is not known; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]
