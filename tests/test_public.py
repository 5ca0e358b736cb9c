"""The names that users import. A change here changes the public API: see CHANGELOG."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import gradstore
import indexer
import query

PACKAGES = ["gradstore", "gradstore.collect", "indexer", "query"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_can_be_imported(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        # A submodule of the same name would hide an export; one is callable.
        found = getattr(module, name)
        assert not isinstance(found, ModuleType) or callable(found)
    with pytest.raises(AttributeError):
        _ = module.no_such_name


def test_one_namespace_has_what_users_need() -> None:
    """The same objects as in the packages; only the packages have the advanced names."""
    for package in PACKAGES[1:]:
        module = importlib.import_module(package)
        shared = set(module.__all__) & set(gradstore.__all__) - {"collect"}
        assert all(getattr(module, name) is getattr(gradstore, name) for name in shared)
    assert {*indexer.__all__, *query.__all__} <= set(gradstore.__all__)
    assert not {"Shuffled", "SideBySide", "Claims"} & set(gradstore.__all__)


def test_a_name_that_is_nearly_right_is_named() -> None:
    with pytest.raises(AttributeError, match="Did you mean 'open_store'"):
        _ = gradstore.openstore


@pytest.mark.parametrize("package", ["gradstore", "indexer", "query"])
def test_nothing_heavy_is_imported_with_a_package(package: str) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "diffusers", "datasets", "faiss", "trak"} & set(found)


def test_the_exported_names() -> None:
    assert {name for name in gradstore.__all__ if not name.endswith("Error")} == {
        *indexer.__all__, *query.__all__,
        "Adapters", "CheckpointCache", "Checkpoints", "CollectConfig", "DiffusersFolders",
        "DiffusionLoss", "EDMLoss", "EvaluateConfig", "EventSpec", "FlowLoss", "GradientSpec",
        "Manifest", "Module",
        "ProjectorSpec", "Recorder", "Rows", "Samples", "Store", "TrainConfig", "__version__",
        "add_checkpoint", "append", "collect", "collect_each", "delete", "drop_checkpoint",
        "generate", "losses", "merge", "open_store", "plan", "repair", "serve", "train", "vacuum",
        "verify",
    }  # fmt: skip
    assert set(indexer.__all__) == {
        "MEASURES", "Calibrated", "Clip", "ExactEngine", "Explanation", "Features", "Measure",
        "Power", "Ranking", "ReTrac", "Rollup", "SearchIndex", "TracIn", "Trak", "Within",
        "breakdown", "build_index", "explain", "index_path",
        "measure_of", "open_index", "rollup", "self_influence",
    }  # fmt: skip
    assert set(query.__all__) == {
        "Answer", "Evaluation", "Hubness", "Queries", "Section", "Sources", "batches", "chosen",
        "collect_queries", "evaluate", "examine", "hubness", "matching_samples", "rerank", "search",
        "Server", "to_table", "write_report", "write_scores",
    }  # fmt: skip
