"""Gradient engines: per-sample gradients behind one protocol."""

from __future__ import annotations

from gradstore.collect.engines.loop import LoopEngine
from gradstore.collect.engines.protocol import EngineMaker, GradientEngine, Receive
from gradstore.collect.engines.streaming import StreamingEngine
from gradstore.collect.engines.vmap import VmapEngine

__all__ = [
    "EngineMaker",
    "GradientEngine",
    "LoopEngine",
    "Receive",
    "StreamingEngine",
    "VmapEngine",
]
