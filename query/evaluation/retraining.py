"""Trains models on subsets of the training samples, and keeps the queries' losses under them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.errors import CheckpointError, ConfigError
from gradstore.progress import quietly, track
from query.results.writing import named, written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Train = Callable[[Sequence[str], int, Path], None]

_FIELDS: Final = ("{ids}", "{seed}", "{out}")
# Lines of a failed command's output that its error repeats.
_SHOWN_LINES: Final = 15


@dataclass(frozen=True)
class Retraining:
    """Losses of the queries under models that are trained on some of the samples.

    Attributes:
        ids: all training samples.
        judge: trains a model and returns a value of each query under it, such as its loss, float64
            `[queries]`; called with a name of the training, the ids to train on, and the seed.
        folder: folder of the values. A training whose values are there is not repeated.
    """

    ids: Sequence[str]
    judge: Callable[[str, Sequence[str], int], NDArray[np.float64]]
    folder: Path

    def values(self, members: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
        """Values of the queries under a model trained on the members, float64 `[queries]`."""
        name = f"{blake2b(np.packbits(members).tobytes(), digest_size=8).hexdigest()}-{seed}"
        file = self.folder / f"{name}.npy"
        if not file.exists():
            chosen = [one for one, wanted in zip(self.ids, members, strict=True) if wanted]
            found = self.judge(name, chosen, seed)
            with named(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            with written(file) as writing, writing.open("wb") as opened:
                np.save(opened, found)
        result: NDArray[np.float64] = np.load(file, allow_pickle=False)
        return result

    def on_subsets(self, subsets: NDArray[np.bool_], seeds: int) -> NDArray[np.float64]:
        """Values `[seeds, queries, subsets]` under models trained on each subset.

        Args:
            subsets: membership `[subsets, samples]`.
            seeds: number of trainings of each subset.
        """
        runs = [(members, seed) for members in subsets for seed in range(seeds)]
        found = [
            self.values(members, seed)
            for members, seed in track(runs, "retraining on halves", "models")
        ]
        return np.array(found).reshape(len(subsets), seeds, -1).transpose(1, 2, 0)


def halves(samples: int, subsets: int) -> NDArray[np.bool_]:
    """Random halves of the training samples, `[subsets, samples]`; the same at each call."""
    generator = np.random.default_rng(0)
    found = np.zeros((subsets, samples), bool)
    for row in found:
        row[generator.permutation(samples)[: samples // 2]] = True
    return found


@dataclass(frozen=True)
class Judge:
    """Trains a model, judges it by the queries' losses, and removes it.

    Attributes:
        train: trains on the samples with some ids, by a seed, and writes checkpoints into a folder
            that does not exist yet.
        losses: the queries' losses under a checkpoint, float64 `[queries]`.
        folder: folder of the models and of their training's output.
    """

    train: Train
    losses: Callable[[Path], NDArray[np.float64]]
    folder: Path

    def __call__(self, name: str, ids: Sequence[str], seed: int) -> NDArray[np.float64]:
        """Train on these samples, and return the queries' losses under the last checkpoint.

        Raises:
            CheckpointError: if the training fails, or leaves no checkpoint.
        """
        from gradstore.collect import find_checkpoints

        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)  # of an interrupted run
        with named(place):
            place.mkdir(parents=True)
        with quietly():
            self.train(ids, seed, place / "model")
        if not (place / "model").exists():
            raise CheckpointError(
                f"the training of {name} made no {place / 'model'}. It must write its checkpoints "
                "into the folder that it is given."
            )
        found = self.losses(find_checkpoints(place / "model")[-1])
        shutil.rmtree(place)
        return found


def by_command(command: str) -> Train:
    """Training by a user's command.

    Args:
        command: `{ids}` in it becomes the path of a text file with one sample id per line, `{seed}`
            the seed, `{out}` the folder for the checkpoints. No shell reads it.

    Raises:
        ConfigError: if the command lacks one of the three, or cannot be split into words.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--train is {command!r}: {error}. Quote it as a shell does.") from error
    lacking = [field for field in _FIELDS if field not in command]
    if lacking:
        raise ConfigError(
            f"--train is {command!r}, which lacks {lacking[0]}. It must name {{ids}}, a file of "
            "the ids to train on, {seed}, and {out}, the folder of its checkpoints."
        )

    def train(ids: Sequence[str], seed: int, out: Path) -> None:
        listed, log = out.with_name("ids.txt"), out.with_name("output.txt")
        with named(listed):
            listed.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
            log.touch()
        values = dict(zip(_FIELDS, (str(listed), str(seed), str(out)), strict=True))
        filled = [_filled(word, values) for word in words]
        try:
            with log.open("w") as file:
                ended = subprocess.run(filled, stdout=file, stderr=file, check=False).returncode  # noqa: S603
        except OSError as error:
            raise ConfigError(f"--train cannot be run: {error}. Check the command.") from error
        if ended:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
            raise CheckpointError(
                f"the training command ended with status {ended}: {shlex.join(filled)}\n{last}\n"
                f"Its whole output is in {log}. Correct --train and run the same command again."
            )

    return train


def _filled(word: str, values: Mapping[str, str]) -> str:
    for field, value in values.items():
        word = word.replace(field, value)
    return word
