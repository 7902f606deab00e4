"""Fused GPU operators. The marker below tells this package from the unrelated `kernels` on PyPI."""

DISTRIBUTION = "hcr-engine"
