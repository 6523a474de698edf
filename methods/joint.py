"""Joint training: all classes at once with full labels, the upper bound."""

from __future__ import annotations

from cispbench.methods.finetune import FineTune


class Joint(FineTune):
    """Plain cross-entropy in a single step of all classes."""

    name = "joint"
    joint = True
