"""Records what torch makes of fp8 weights with block scales, for the test of our reader.

Needs torch, which the tests do not:

    python tests/vectors/make_fp8.py

Writes tests/data/fp8.npz:
    values   float32[256]        every code of float8_e4m3fn
    weight   uint8[140, 130]     random codes, and no NaN
    scale    uint16[2, 2]        bf16, one for each block of 128 x 128
    decoded  float32[140, 130]   weight * scale
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "data/fp8.npz"


def main() -> None:
    torch.manual_seed(20261122)
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).to(torch.float32)
    weight = torch.randint(0, 256, (140, 130), dtype=torch.uint8)
    weight[(weight & 0x7F) == 0x7F] = 0x7E
    scale = (torch.rand(2, 2) * 1e-3).to(torch.bfloat16)
    blocks = scale.to(torch.float32).repeat_interleave(128, 0).repeat_interleave(128, 1)
    decoded = weight.view(torch.float8_e4m3fn).to(torch.float32) * blocks[:140, :130]
    np.savez_compressed(
        OUT,
        values=values.numpy(),
        weight=weight.numpy(),
        scale=scale.view(torch.uint16).numpy(),
        decoded=decoded.numpy(),
    )


if __name__ == "__main__":
    main()
