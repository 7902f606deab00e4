"""The Triton kernels and their launchers; imported only where a kernel runs, so that no other machine needs Triton.

Every tensor is dense [N, H, W, C] memory (channels-last). Offsets that can pass 2³¹ are formed in 64 bits,
sums are accumulated in fp32 and reduced in two stages of fixed order, without atomics.
"""

import os

# Triton joins multiplications and additions (FFMA) unasked until 3.9 and no longer from 3.10 on. Pinned, because these
# kernels are bound by the instructions that they issue; a process that sets the variable itself is obeyed.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
