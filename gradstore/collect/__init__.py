"""From training samples to stored rows: the only place that imports torch, diffusers and trak."""

from __future__ import annotations

from gradstore.collect.checkpoints import Checkpoint, TrainingRecord, find_checkpoints, load
from gradstore.collect.events import EventPlan, Events, PlannedEvents, ReplayedEvents
from gradstore.collect.executor import ByRank, Executor, InProcess, Task
from gradstore.collect.gradients import GradientEngine, LoopEngine, VmapEngine
from gradstore.collect.objective import Batch, DiffusionLoss, Objective
from gradstore.collect.projectors import (
    IdentityProjector,
    Projection,
    Projector,
    SjltProjector,
    TrakProjector,
)
from gradstore.collect.recorder import Recorder
from gradstore.collect.run import collect, collect_config
from gradstore.collect.samples import Samples
from gradstore.collect.sampling import generate
from gradstore.collect.training import train
from gradstore.config import CollectConfig, TrainConfig
from gradstore.spec import EventSpec, ProjectorSpec

__all__ = [
    "Batch",
    "ByRank",
    "Checkpoint",
    "CollectConfig",
    "DiffusionLoss",
    "EventPlan",
    "EventSpec",
    "Events",
    "Executor",
    "GradientEngine",
    "IdentityProjector",
    "InProcess",
    "LoopEngine",
    "Objective",
    "PlannedEvents",
    "Projection",
    "Projector",
    "ProjectorSpec",
    "Recorder",
    "ReplayedEvents",
    "Samples",
    "SjltProjector",
    "Task",
    "TrainConfig",
    "TrainingRecord",
    "TrakProjector",
    "VmapEngine",
    "collect",
    "collect_config",
    "find_checkpoints",
    "generate",
    "load",
    "train",
]
