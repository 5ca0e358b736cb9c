"""A gradient store for training-data attribution of diffusion models.

This package exports every name that users need and loads it on first use: `open_store` needs only
numpy and Zarr. `gradstore.collect`, `indexer` and `query` export the same names and the advanced
ones.

Examples:
    import gradstore as gs

    store = gs.collect(train, "run/checkpoints", "train.gradstore")
    queries = gs.collect_queries(store, images, "asked.gradstore")
    table = gs.search(store, queries, measure="retrac").to_table()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from gradstore.collect.data.samples import Samples
    from gradstore.collect.events.recorder import Recorder
    from gradstore.collect.grow import add_checkpoint, append, repair
    from gradstore.collect.judging import losses
    from gradstore.collect.models.adapters import Adapters
    from gradstore.collect.models.cache import CheckpointCache, Checkpoints
    from gradstore.collect.models.diffusers_folders import DiffusersFolders
    from gradstore.collect.models.module import Module
    from gradstore.collect.objectives.diffusion import DiffusionLoss
    from gradstore.collect.objectives.edm import EDMLoss
    from gradstore.collect.objectives.flow import FlowLoss
    from gradstore.collect.pipeline.run import collect, collect_each, plan
    from gradstore.collect.toy.sampling import generate
    from gradstore.collect.toy.training import train
    from gradstore.errors import (
        BusyError,
        CheckpointError,
        ConfigError,
        DatasetError,
        DependencyError,
        EngineError,
        FingerprintError,
        GradientError,
        GradstoreError,
        NotAStoreError,
        QueryError,
        SearchIndexError,
        StoreError,
        UnreadableError,
        UnsealedError,
    )
    from gradstore.flags.collect import CollectConfig
    from gradstore.flags.evaluate import EvaluateConfig
    from gradstore.flags.train import TrainConfig
    from gradstore.store.changes.checkpoints import drop_checkpoint
    from gradstore.store.changes.delete import delete
    from gradstore.store.changes.merge import merge
    from gradstore.store.changes.vacuum import vacuum
    from gradstore.store.format.manifest import Manifest
    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import EventSpec, GradientSpec, ProjectorSpec
    from gradstore.store.opening import open_store
    from gradstore.store.reader import Store
    from gradstore.store.verify import verify
    from indexer.approximate.build import build_index
    from indexer.approximate.index import SearchIndex
    from indexer.approximate.opening import open_index
    from indexer.approximate.spec import index_path
    from indexer.exact.engine import ExactEngine
    from indexer.exact.ranking import Ranking
    from indexer.feature import Features
    from indexer.measure import Measure
    from indexer.measures.registry import MEASURES, measure_of
    from indexer.measures.simple import Clip, Power, ReTrac, TracIn
    from indexer.measures.timesteps import Calibrated, Within
    from indexer.measures.trak import Trak
    from indexer.studies.breakdown import breakdown
    from indexer.studies.explanation import Explanation, explain
    from indexer.studies.rollup import Rollup, rollup
    from indexer.studies.self_influence import self_influence
    from query.blocks import batches
    from query.collection import collect_queries
    from query.evaluation.evaluate import Evaluation, evaluate
    from query.filters import chosen, matching_samples
    from query.info import examine
    from query.queries import Queries
    from query.results.answer import Answer
    from query.results.report import Section, write_report
    from query.results.table import to_table
    from query.scores import write_scores
    from query.searching import search
    from query.serve.server import Server, serve
    from query.studies.hubness import Hubness, hubness
    from query.true_influence import Sources, rerank

__version__ = "0.1.0"

__all__ = [
    "MEASURES",
    "Adapters",
    "Answer",
    "BusyError",
    "Calibrated",
    "CheckpointCache",
    "CheckpointError",
    "Checkpoints",
    "Clip",
    "CollectConfig",
    "ConfigError",
    "DatasetError",
    "DependencyError",
    "DiffusersFolders",
    "DiffusionLoss",
    "EDMLoss",
    "EngineError",
    "EvaluateConfig",
    "Evaluation",
    "EventSpec",
    "ExactEngine",
    "Explanation",
    "Features",
    "FingerprintError",
    "FlowLoss",
    "GradientError",
    "GradientSpec",
    "GradstoreError",
    "Hubness",
    "Manifest",
    "Measure",
    "Module",
    "NotAStoreError",
    "Power",
    "ProjectorSpec",
    "Queries",
    "QueryError",
    "Ranking",
    "ReTrac",
    "Recorder",
    "Rollup",
    "Rows",
    "Samples",
    "SearchIndex",
    "SearchIndexError",
    "Section",
    "Server",
    "Sources",
    "Store",
    "StoreError",
    "TracIn",
    "TrainConfig",
    "Trak",
    "UnreadableError",
    "UnsealedError",
    "Within",
    "__version__",
    "add_checkpoint",
    "append",
    "batches",
    "breakdown",
    "build_index",
    "chosen",
    "collect",
    "collect_each",
    "collect_queries",
    "delete",
    "drop_checkpoint",
    "evaluate",
    "examine",
    "explain",
    "generate",
    "hubness",
    "index_path",
    "losses",
    "matching_samples",
    "measure_of",
    "merge",
    "open_index",
    "open_store",
    "plan",
    "repair",
    "rerank",
    "rollup",
    "search",
    "self_influence",
    "serve",
    "to_table",
    "train",
    "vacuum",
    "verify",
    "write_report",
    "write_scores",
]

_HOMES = {
    "Adapters": "gradstore.collect.models.adapters",
    "Answer": "query.results.answer",
    "BusyError": "gradstore.errors",
    "Calibrated": "indexer.measures.timesteps",
    "CheckpointCache": "gradstore.collect.models.cache",
    "CheckpointError": "gradstore.errors",
    "Checkpoints": "gradstore.collect.models.cache",
    "Clip": "indexer.measures.simple",
    "CollectConfig": "gradstore.flags.collect",
    "ConfigError": "gradstore.errors",
    "DatasetError": "gradstore.errors",
    "DependencyError": "gradstore.errors",
    "DiffusersFolders": "gradstore.collect.models.diffusers_folders",
    "DiffusionLoss": "gradstore.collect.objectives.diffusion",
    "EDMLoss": "gradstore.collect.objectives.edm",
    "EngineError": "gradstore.errors",
    "EvaluateConfig": "gradstore.flags.evaluate",
    "Evaluation": "query.evaluation.evaluate",
    "EventSpec": "gradstore.store.format.spec",
    "ExactEngine": "indexer.exact.engine",
    "Explanation": "indexer.studies.explanation",
    "Features": "indexer.feature",
    "FingerprintError": "gradstore.errors",
    "FlowLoss": "gradstore.collect.objectives.flow",
    "GradientError": "gradstore.errors",
    "GradientSpec": "gradstore.store.format.spec",
    "GradstoreError": "gradstore.errors",
    "Hubness": "query.studies.hubness",
    "MEASURES": "indexer.measures.registry",
    "Manifest": "gradstore.store.format.manifest",
    "Measure": "indexer.measure",
    "Module": "gradstore.collect.models.module",
    "NotAStoreError": "gradstore.errors",
    "Power": "indexer.measures.simple",
    "ProjectorSpec": "gradstore.store.format.spec",
    "Queries": "query.queries",
    "QueryError": "gradstore.errors",
    "Ranking": "indexer.exact.ranking",
    "ReTrac": "indexer.measures.simple",
    "Recorder": "gradstore.collect.events.recorder",
    "Rollup": "indexer.studies.rollup",
    "Rows": "gradstore.store.format.rows",
    "Samples": "gradstore.collect.data.samples",
    "SearchIndex": "indexer.approximate.index",
    "SearchIndexError": "gradstore.errors",
    "Section": "query.results.report",
    "Server": "query.serve.server",
    "Sources": "query.true_influence",
    "Store": "gradstore.store.reader",
    "StoreError": "gradstore.errors",
    "TracIn": "indexer.measures.simple",
    "TrainConfig": "gradstore.flags.train",
    "Trak": "indexer.measures.trak",
    "UnreadableError": "gradstore.errors",
    "UnsealedError": "gradstore.errors",
    "Within": "indexer.measures.timesteps",
    "add_checkpoint": "gradstore.collect.grow",
    "append": "gradstore.collect.grow",
    "batches": "query.blocks",
    "breakdown": "indexer.studies.breakdown",
    "build_index": "indexer.approximate.build",
    "chosen": "query.filters",
    "collect": "gradstore",
    "collect_each": "gradstore.collect.pipeline.run",
    "collect_queries": "query.collection",
    "delete": "gradstore.store.changes.delete",
    "drop_checkpoint": "gradstore.store.changes.checkpoints",
    "evaluate": "query.evaluation.evaluate",
    "examine": "query.info",
    "explain": "indexer.studies.explanation",
    "generate": "gradstore.collect.toy.sampling",
    "hubness": "query.studies.hubness",
    "index_path": "indexer.approximate.spec",
    "losses": "gradstore.collect.judging",
    "matching_samples": "query.filters",
    "measure_of": "indexer.measures.registry",
    "merge": "gradstore.store.changes.merge",
    "open_index": "indexer.approximate.opening",
    "open_store": "gradstore.store.opening",
    "plan": "gradstore.collect.pipeline.run",
    "repair": "gradstore.collect.grow",
    "rerank": "query.true_influence",
    "rollup": "indexer.studies.rollup",
    "search": "query.searching",
    "self_influence": "indexer.studies.self_influence",
    "serve": "query.serve.server",
    "to_table": "query.results.table",
    "train": "gradstore.collect.toy.training",
    "vacuum": "gradstore.store.changes.vacuum",
    "verify": "gradstore.store.verify",
    "write_report": "query.results.report",
    "write_scores": "query.scores",
    # The package is callable as the function of the same name.
}
__getattr__ = exporter(__name__, _HOMES)
