"""Computes stored rows from training samples; the only package that imports diffusers and trak.

models/       checkpoints: folders, records, loading, selection of parameters
data/         datasets as samples with stable ids
events/       timesteps and noises: planned, replayed, recorded
objectives/   the losses to differentiate
engines/      per-sample gradients
projectors/   map gradients to directions
pipeline/     computes the rows of a store from a dataset and checkpoints
toy/          a small trainer and sampler
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from gradstore.collect.data.samples import Samples
    from gradstore.collect.engines.loop import LoopEngine
    from gradstore.collect.engines.protocol import GradientEngine
    from gradstore.collect.engines.streaming import StreamingEngine
    from gradstore.collect.engines.vmap import VmapEngine
    from gradstore.collect.events.planned import PlannedEvents
    from gradstore.collect.events.protocol import EventPlan, Events
    from gradstore.collect.events.recorder import Recorder
    from gradstore.collect.events.replayed import ReplayedEvents
    from gradstore.collect.grow import add_checkpoint, append, repair
    from gradstore.collect.judging import losses
    from gradstore.collect.models.adapters import Adapters
    from gradstore.collect.models.cache import (
        CheckpointCache,
        Checkpoints,
        find_checkpoints,
        recorded_loader,
    )
    from gradstore.collect.models.diffusers_folders import DiffusersFolders
    from gradstore.collect.models.loaders import load, loader_of
    from gradstore.collect.models.loading import Checkpoint
    from gradstore.collect.models.module import Module
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.models.record import TrainingRecord
    from gradstore.collect.objectives.diffusion import DiffusionLoss
    from gradstore.collect.objectives.edm import EDMLoss
    from gradstore.collect.objectives.flow import FlowLoss
    from gradstore.collect.objectives.protocol import Batch, Objective
    from gradstore.collect.objectives.wrappers import Autocast, Compiled
    from gradstore.collect.pipeline.claims import Claims
    from gradstore.collect.pipeline.estimate import Estimate
    from gradstore.collect.pipeline.executors import (
        ByRank,
        Executor,
        InProcess,
        Shuffled,
        SideBySide,
        Task,
    )
    from gradstore.collect.pipeline.options import CollectOptions
    from gradstore.collect.pipeline.run import (
        collect,
        collect_config,
        collect_each,
        plan,
        plan_config,
    )
    from gradstore.collect.projectors.identity import IdentityProjector
    from gradstore.collect.projectors.protocol import Projection, Projector
    from gradstore.collect.projectors.sjlt import SjltProjector
    from gradstore.collect.projectors.trak import TrakProjector
    from gradstore.collect.toy.sampling import generate
    from gradstore.collect.toy.training import train
    from gradstore.flags.collect import CollectConfig
    from gradstore.flags.train import TrainConfig
    from gradstore.store.format.spec import EventSpec, GradientSpec, ModelSpec, ProjectorSpec

__all__ = [
    "Adapters",
    "Autocast",
    "Batch",
    "ByRank",
    "Checkpoint",
    "CheckpointCache",
    "Checkpoints",
    "Claims",
    "CollectConfig",
    "CollectOptions",
    "Compiled",
    "DiffusersFolders",
    "DiffusionLoss",
    "EDMLoss",
    "Estimate",
    "EventPlan",
    "EventSpec",
    "Events",
    "Executor",
    "FlowLoss",
    "GradientEngine",
    "GradientSpec",
    "IdentityProjector",
    "InProcess",
    "Loader",
    "LoopEngine",
    "ModelSpec",
    "Module",
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
    "loader_of",
    "losses",
    "plan",
    "plan_config",
    "recorded_loader",
    "repair",
    "train",
]

_HOMES = {
    "Adapters": "gradstore.collect.models.adapters",
    "Autocast": "gradstore.collect.objectives.wrappers",
    "Batch": "gradstore.collect.objectives.protocol",
    "ByRank": "gradstore.collect.pipeline.executors",
    "Checkpoint": "gradstore.collect.models.loading",
    "CheckpointCache": "gradstore.collect.models.cache",
    "Checkpoints": "gradstore.collect.models.cache",
    "Claims": "gradstore.collect.pipeline.claims",
    "CollectConfig": "gradstore.flags.collect",
    "CollectOptions": "gradstore.collect.pipeline.options",
    "Compiled": "gradstore.collect.objectives.wrappers",
    "DiffusersFolders": "gradstore.collect.models.diffusers_folders",
    "DiffusionLoss": "gradstore.collect.objectives.diffusion",
    "EDMLoss": "gradstore.collect.objectives.edm",
    "Estimate": "gradstore.collect.pipeline.estimate",
    "EventPlan": "gradstore.collect.events.protocol",
    "EventSpec": "gradstore.store.format.spec",
    "Events": "gradstore.collect.events.protocol",
    "Executor": "gradstore.collect.pipeline.executors",
    "FlowLoss": "gradstore.collect.objectives.flow",
    "GradientEngine": "gradstore.collect.engines.protocol",
    "GradientSpec": "gradstore.store.format.spec",
    "IdentityProjector": "gradstore.collect.projectors.identity",
    "InProcess": "gradstore.collect.pipeline.executors",
    "Loader": "gradstore.collect.models.protocol",
    "LoopEngine": "gradstore.collect.engines.loop",
    "ModelSpec": "gradstore.store.format.spec",
    "Module": "gradstore.collect.models.module",
    "Objective": "gradstore.collect.objectives.protocol",
    "PlannedEvents": "gradstore.collect.events.planned",
    "Projection": "gradstore.collect.projectors.protocol",
    "Projector": "gradstore.collect.projectors.protocol",
    "ProjectorSpec": "gradstore.store.format.spec",
    "Recorder": "gradstore.collect.events.recorder",
    "ReplayedEvents": "gradstore.collect.events.replayed",
    "Samples": "gradstore.collect.data.samples",
    "Shuffled": "gradstore.collect.pipeline.executors",
    "SideBySide": "gradstore.collect.pipeline.executors",
    "SjltProjector": "gradstore.collect.projectors.sjlt",
    "StreamingEngine": "gradstore.collect.engines.streaming",
    "Task": "gradstore.collect.pipeline.executors",
    "TrainConfig": "gradstore.flags.train",
    "TrainingRecord": "gradstore.collect.models.record",
    "TrakProjector": "gradstore.collect.projectors.trak",
    "VmapEngine": "gradstore.collect.engines.vmap",
    "add_checkpoint": "gradstore.collect.grow",
    "append": "gradstore.collect.grow",
    "collect": "gradstore.collect.pipeline.run",
    "collect_config": "gradstore.collect.pipeline.run",
    "collect_each": "gradstore.collect.pipeline.run",
    "find_checkpoints": "gradstore.collect.models.cache",
    "generate": "gradstore.collect.toy.sampling",
    "load": "gradstore.collect.models.loaders",
    "loader_of": "gradstore.collect.models.loaders",
    "losses": "gradstore.collect.judging",
    "plan": "gradstore.collect.pipeline.run",
    "plan_config": "gradstore.collect.pipeline.run",
    "recorded_loader": "gradstore.collect.models.cache",
    "repair": "gradstore.collect.grow",
    "train": "gradstore.collect.toy.training",
}
__getattr__ = exporter(__name__, _HOMES)


class _Callable(ModuleType):
    """Makes the package `gradstore.collect` callable as its function `collect`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `gradstore.collect.collect`."""
        return self.collect(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
