"""The Triton kernels and their launchers; imported only where a kernel runs, so that no other machine needs Triton.

Every tensor is dense [N, H, W, C] memory (channels-last). Offsets that can pass 2³¹ are formed in 64 bits,
sums are accumulated in fp32 and reduced in two stages of fixed order, without atomics.
"""
