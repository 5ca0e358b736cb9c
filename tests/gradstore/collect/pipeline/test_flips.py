"""Random flips of training, replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import gradstore as gs
from gradstore.collect import ReplayedEvents
from gradstore.collect.models.encoders import Encoders
from gradstore.errors import CheckpointError, DatasetError
from tests.support import naive
from tests.support.pipelines import CAPTIONS, stable_diffusion
from tests.support.worlds import NAMES, images, save_checkpoint

EXACT: dict[str, Any] = {"events": "replayed", "metric": "none", "dtype": "float32"}


def recorded(folder: Path, *, flip: bool = True, ids: list[str] = NAMES) -> gs.Recorder:
    recorder = gs.Recorder(3, 1000, flip=flip)
    recorder.save(folder, ids=ids, epoch=2, learning_rate_sum=0.1, loss="l1")
    return recorder


def test_rows_are_those_of_flipped_samples(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "epoch-2")
    samples = gs.Samples(images(7), ids=NAMES)
    flips = recorded(folder).flips(NAMES, 2)
    assert 0 < flips.sum() < 7
    store = gs.collect(samples, [folder], tmp_path / "a", projector="identity", **EXACT)
    seen = [samples[row].tensor.flip(-1) if flips[row] else samples[row].tensor for row in range(7)]
    plan = ReplayedEvents([folder], 1000)
    exact = naive.full_gradients(folder, gs.Samples(seen, ids=NAMES), plan, 0).numpy()
    np.testing.assert_allclose(naive.rows_of(store, 0), exact, atol=1e-5 * np.abs(exact).max())
    # The unprojected gradients of the same samples are checked against the stored norms.
    queries = gs.collect_queries(store, samples, tmp_path / "q", events=gs.EventSpec(timesteps=1))
    answer = gs.search(store, queries, 2, measure="tracin")
    features, sources = gs.Features.of(store, "tracin"), gs.Sources(samples, samples)
    assert len(gs.rerank(answer, features, 2, sources)) == 7


def test_flips_identify_rows_and_their_lack_changes_nothing(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "epoch-2")
    assert not recorded(folder, flip=False).flips(NAMES, 2).any()
    plain = ReplayedEvents([folder], 1000)
    assert plain.at(0, NAMES).flip is None
    # As before there were flips.
    assert plain.identity()["recorded"] == ["fc8cbc5b0ae4b5b603f5f20bb020ec35"]
    recorded(folder)
    flipped = ReplayedEvents([folder], 1000)
    assert flipped.identity() != plain.identity()
    np.testing.assert_array_equal(flipped.at(0, NAMES).key, plain.at(0, NAMES).key)


def test_half_of_the_samples_are_flipped() -> None:
    recorder = gs.Recorder(0, 1000, flip=True)
    ids = [str(number) for number in range(4000)]
    one, other = recorder.flips(ids, 1), recorder.flips(ids, 2)
    # Five standard errors.
    assert abs(one.mean() - 0.5) < 0.04
    assert abs((one == other).mean() - 0.5) < 0.04


def test_flips_of_another_kind(tmp_path: Path) -> None:
    recorded(tmp_path)
    table = pq.read_table(tmp_path / "events.parquet")
    noted = {**table.schema.metadata, b"gradstore flips": b"a coin"}
    pq.write_table(table.replace_schema_metadata(noted), tmp_path / "events.parquet")
    with pytest.raises(CheckpointError, match="'a coin'.*--events planned"):
        ReplayedEvents([tmp_path], 1000)


def test_pictures_are_flipped_before_they_are_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each, while the encoders are in memory; latents cannot be flipped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = stable_diffusion(tmp_path / "sd")
    flips = recorded(base, ids=NAMES).flips(NAMES, 2)
    seen: list[torch.Tensor] = []
    own, released = Encoders.latents, Encoders.release

    def latents(self: Encoders, picture: torch.Tensor) -> torch.Tensor:
        seen.append(picture)
        return own(self, picture)

    def release(self: Encoders) -> None:
        released(self)
        monkeypatch.delattr(Encoders, "pipeline")

    monkeypatch.setattr(Encoders, "latents", latents)
    monkeypatch.setattr(Encoders, "release", release)
    pictures = images(7, mode="RGB")
    items = [{"image": one, "text": CAPTIONS[0]} for one in pictures]
    gs.collect(gs.Samples(items, ids=NAMES), base, tmp_path / "a", projector="sjlt", **EXACT)
    assert len(seen) == 7 + flips.sum()
    monkeypatch.undo()
    latent = [
        {"image": torch.zeros(4, 4, 4), "conditions": {"encoder_hidden_states": torch.zeros(8, 6)}}
    ] * 7
    with pytest.raises(DatasetError, match="flipped latents"):
        gs.collect(gs.Samples(latent, ids=NAMES), base, tmp_path / "b", projector="sjlt", **EXACT)
