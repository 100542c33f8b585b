"""Mixed precision where it pays: bf16 on a GPU, and on a CPU that multiplies it in hardware."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocast", "has_fast_bf16"]


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 products are quicker than float32 there.

    A CPU without instructions for them emulates each: measured on AVX2, a sixth of float32's rate.
    """
    if torch.device(device).type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    # ARM has no such entries; its kernels take bf16 from SVE on.
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "sve"))


def autocast(device: str) -> AbstractContextManager[None]:
    """`torch.autocast` to bf16, or nothing where that would be slower."""
    if not has_fast_bf16(device):
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
