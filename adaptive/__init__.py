"""Adaptive inference-time compute: self-evaluation and the decisions that follow from it. Knows nothing of HTTP."""
