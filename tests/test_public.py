"""The names that users import. A change here is a change of promises: see CHANGELOG."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.mark.parametrize("package", ["gradstore", "gradstore.collect", "indexer", "query"])
def test_every_exported_name_can_be_imported(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        # A submodule of the same name would hide what is exported.
        assert not isinstance(getattr(module, name), ModuleType)
    with pytest.raises(AttributeError):
        _ = module.no_such_name


def test_the_exported_names() -> None:
    import gradstore
    import indexer
    import query

    assert {name for name in gradstore.__all__ if not name.endswith("Error")} == {
        "Manifest", "Rows", "Store", "__version__", "delete", "drop_checkpoint", "merge",
        "open_store", "vacuum",
    }  # fmt: skip
    assert set(indexer.__all__) == {
        "MEASURES", "Calibrated", "Clip", "ExactEngine", "Explanation", "Features", "Measure",
        "Power", "Ranking", "ReTrac", "Rollup", "SearchIndex", "TracIn", "Trak", "Within",
        "breakdown", "build_index", "explain", "feature_dim", "features", "index_path",
        "measure_of", "open_index", "rollup", "self_influence",
    }  # fmt: skip
    assert set(query.__all__) == {
        "Answer", "Hubness", "Queries", "Section", "Sources", "batches", "chosen",
        "collect_queries", "examine", "hubness", "rerank", "search", "to_table", "write_report",
        "write_scores",
    }  # fmt: skip
