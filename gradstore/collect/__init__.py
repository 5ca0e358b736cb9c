"""From training samples to stored rows: the only place that imports torch, diffusers and trak."""

from __future__ import annotations

from gradstore.collect.checkpoints import (
    Checkpoint,
    Checkpoints,
    TrainingRecord,
    find_checkpoints,
    load,
)
from gradstore.collect.claims import Claims
from gradstore.collect.engines import (
    GradientEngine,
    LoopEngine,
    StreamingEngine,
    VmapEngine,
)
from gradstore.collect.estimate import Estimate
from gradstore.collect.events import EventPlan, Events, PlannedEvents, ReplayedEvents
from gradstore.collect.executor import ByRank, Executor, InProcess, Shuffled, SideBySide, Task
from gradstore.collect.grow import add_checkpoint, append, repair
from gradstore.collect.job import CollectOptions
from gradstore.collect.objective import Autocast, Batch, Compiled, DiffusionLoss, Objective
from gradstore.collect.projectors import (
    IdentityProjector,
    Projection,
    Projector,
    SjltProjector,
    TrakProjector,
)
from gradstore.collect.recorder import Recorder
from gradstore.collect.run import collect, collect_config, collect_each, plan, plan_config
from gradstore.collect.samples import Samples
from gradstore.collect.sampling import generate
from gradstore.collect.training import train
from gradstore.config import CollectConfig, TrainConfig
from gradstore.spec import EventSpec, GradientSpec, ProjectorSpec

__all__ = [
    "Autocast",
    "Batch",
    "ByRank",
    "Checkpoint",
    "Checkpoints",
    "Claims",
    "CollectConfig",
    "CollectOptions",
    "Compiled",
    "DiffusionLoss",
    "Estimate",
    "EventPlan",
    "EventSpec",
    "Events",
    "Executor",
    "GradientEngine",
    "GradientSpec",
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
    "Shuffled",
    "SideBySide",
    "SjltProjector",
    "StreamingEngine",
    "Task",
    "TrainConfig",
    "TrainingRecord",
    "TrakProjector",
    "VmapEngine",
    "add_checkpoint",
    "append",
    "collect",
    "collect_config",
    "collect_each",
    "find_checkpoints",
    "generate",
    "load",
    "plan",
    "plan_config",
    "repair",
    "train",
]
