"""The paper's training, through the `Recorder`. After a kill it resumes at the last checkpoint.

The trainer of `gradstore train` trains small models on the images of one folder. The paper's model
is larger, and retraining for counterfactuals needs subsets of one dataset. This is therefore the
README's "your own training loop", with Adam's state kept beside the last checkpoint.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from gradstore.collect import DiffusionLoss, Recorder, Samples
from gradstore.collect.devices import choose
from gradstore.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import ModelMixin

_STATE = "resume.safetensors"
LOSSES = "loss.json"


def fit(
    make: Callable[[], ModelMixin],
    samples: Samples,
    out: Path,
    *,
    epochs: int,
    checkpoint_every: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> list[Path]:
    """Train a noise predictor by DDIM's cosine schedule, L1 loss and Adam, and save checkpoints.

    Weights, order and events are functions of the seed, so an interrupted and resumed run equals an
    uninterrupted one.

    Args:
        make: makes the model; called after torch is seeded.
        samples: tensors of one shape.
        out: folder of the checkpoints; existing ones are kept.
        epochs: passes over the samples.
        checkpoint_every: epochs between checkpoints.
        batch_size: samples per step.
        learning_rate: Adam's.
        seed: seed of all random draws.

    Returns:
        The checkpoints, in training order. Each holds `loss.json`, the mean loss of its last epoch.
    """
    wanted = list(range(checkpoint_every, epochs + 1, checkpoint_every))
    folders = [out / f"epoch-{epoch:04d}" for epoch in wanted]
    done = max((e for e, folder in zip(wanted, folders, strict=True) if folder.exists()), default=0)
    if done == wanted[-1]:
        return folders
    torch.manual_seed(seed)
    device = choose(None)
    model = make()
    if done:
        last = out / f"epoch-{done:04d}"
        model = type(model).from_pretrained(last / "unet")
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    if done:
        _restore(optimizer, last / _STATE)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    objective = DiffusionLoss(scheduler, "l1")
    recorder = Recorder(seed, objective.num_train_timesteps)
    data = torch.stack([samples[row].tensor for row in range(len(samples))]).to(device)
    with progress((wanted[-1] - done) * len(samples), f"training {out.name}", "samples") as bar:
        for epoch in range(done + 1, wanted[-1] + 1):
            generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
            order = generator.permutation(len(samples))
            total = 0.0
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size].tolist()
                ids = [samples.ids[row] for row in rows]
                timesteps, noise = recorder.draw(ids, epoch, data.shape[1:])
                loss = objective.losses(
                    model,
                    data[rows],
                    torch.from_numpy(timesteps).to(device),
                    torch.from_numpy(noise).to(device),
                    {},
                ).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach()) * len(rows)
                bar.update(len(rows))
            if epoch not in wanted:
                continue
            folder = out / f"epoch-{epoch:04d}"
            # Written beside and renamed: a partial folder never has a checkpoint's name.
            writing = folder.with_name(f".{folder.name}.writing")
            model.save_pretrained(writing / "unet")
            scheduler.save_pretrained(writing / "scheduler")
            recorder.save(
                writing,
                ids=samples.ids,
                epoch=epoch,
                learning_rate_sum=learning_rate * epoch,
                loss="l1",
                optimizer=optimizer,
                model=model,
            )
            (writing / LOSSES).write_text(json.dumps({"loss": total / len(samples)}) + "\n")
            _keep(optimizer, writing / _STATE)
            writing.rename(folder)
            for older in folders[: wanted.index(epoch)]:
                (older / _STATE).unlink(missing_ok=True)
    (folders[-1] / _STATE).unlink()
    return folders


def _keep(optimizer: torch.optim.Optimizer, file: Path) -> None:
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{number}.{name}": value.contiguous()
        for number, values in state.items()
        for name, value in values.items()
    }
    save_file(tensors, file)


def _restore(optimizer: torch.optim.Optimizer, file: Path) -> None:
    whole = optimizer.state_dict()
    whole["state"] = {}
    for key, value in load_file(file).items():
        number, _, name = key.partition(".")
        whole["state"].setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(whole)
