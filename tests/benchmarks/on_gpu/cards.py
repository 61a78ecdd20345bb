"""What the hardware allows: memory bandwidth and bfloat16 products, by the name that CUDA gives the card."""

import time

import torch

from .processes import Options

CARDS = {  # words of the name: GB/s, TFLOP/s without sparsity, from the data sheets; the first that fits counts
    "B200": (8000, 2250), "GH200": (4000, 990), "H200": (4800, 989), "H100 NVL": (3900, 835), "H100 PCIe": (2000, 756), "H100": (3350, 989),
    "A100-SXM4-40GB": (1555, 312), "A100-PCIE-40GB": (1555, 312), "A100 80GB PCIe": (1935, 312), "A100": (2039, 312), "A40": (696, 150),
    "A30": (933, 165), "A10G": (600, 70), "A10": (600, 125),
    "L40S": (864, 362), "L40": (864, 181), "L4": (300, 121),
    "RTX A6000": (768, 155), "RTX 6000 Ada": (960, 364), "RTX 4090": (1008, 165), "RTX 3090": (936, 71), "V100": (900, 125),
    "T4": (320, 65),
}  # fmt: skip


def known_card(name: str) -> tuple[float, float] | None:
    """Bytes and flops per second of a card in the table."""
    words = set(name.replace("-", " ").split())
    for card, (bandwidth, tera) in CARDS.items():
        if set(card.replace("-", " ").split()) <= words:
            return bandwidth * 1e9, tera * 1e12
    return None


def limits(options: Options, device: str) -> tuple[float, float]:
    """Bytes and flops per second: as given, else from the table, else measured."""
    if not (options.bandwidth and options.flops):
        known = (known_card(torch.cuda.get_device_name()) if device == "cuda" else None) or measured(device)
        return options.bandwidth or known[0], options.flops or known[1]
    return options.bandwidth, options.flops


def measured(device: str) -> tuple[float, float]:
    """Of a large copy (bytes read and written) and a large product."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (256, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    big = torch.empty(2**30 if device == "cuda" else 2**20, dtype=torch.uint8, device=device)
    copy = big.clone()
    return 2 * len(big) / seconds_of(lambda: copy.copy_(big), device), 2 * side**3 / seconds_of(lambda: a @ b, device)


def seconds_of(work, device: str, repeats: int = 5, warm_up: int = 2) -> float:
    """The median of some calls, after some that warm up."""
    times = []
    for _ in range(warm_up + repeats):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    return sorted(times[warm_up:])[repeats // 2]


def wait(device: str) -> None:
    """For a GPU, whose work goes on after Python has asked for it."""
    if device == "cuda":
        torch.cuda.synchronize()
