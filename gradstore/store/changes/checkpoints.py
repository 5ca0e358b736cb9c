"""Adding a checkpoint to a store, and dropping one."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import StoreError
from gradstore.store.changes.commit import attributes, commit, failed, require_whole
from gradstore.store.format.fingerprint import fingerprint, only_checkpoints
from gradstore.store.format.root import ROOT
from gradstore.store.opening import as_store
from gradstore.store.writer import array_objects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.format.spec import CheckpointSpec, Identity, StoreSpec
    from gradstore.store.opening import StoreLike
    from gradstore.store.part import Part
    from gradstore.store.reader import Store


# Attribute of the group of a new checkpoint: the digest of its weights.
_WEIGHTS: Final = "gradstore_weights"


def next_number(store: Store, weights: str) -> int:
    """Number of a new checkpoint with these weights, the same at every attempt.

    The store never used the number, nor retired it, and no interrupted or concurrent process began
    it with other weights.

    Raises:
        StoreError: if the store cannot be read.
    """
    names = [prefix.split("/")[-1] for prefix in store.spec.retired]
    retired = [int(name) for name in names if name.isdecimal()]
    try:
        return next(
            number
            for number in count(max(store.spec.next_number, 1 + max([*store.numbers, *retired])))
            if _begun_with(store.parts[0], number) in {None, weights}
        )
    except OSError as error:
        raise failed(store, error) from error


def _begun_with(part: Part, number: int) -> Any:
    """Weights digest of the checkpoint whose arrays exist under `number`; None if there is none."""
    try:
        return attributes(part.objects, part.key(f"checkpoints/{number}/zarr.json")).get(_WEIGHTS)
    except FileNotFoundError:
        return None


def drop_checkpoint(store: StoreLike, checkpoint: int) -> Store:
    """Drop a checkpoint from a store. Its bytes stay until `vacuum`.

    If the training run recorded its learning rates, the other checkpoints get the weights that they
    would have without the dropped one. Otherwise their weights stay the same.

    Args:
        store: the store.
        checkpoint: its position among the checkpoints, from 0.

    Returns:
        The changed store, with another fingerprint.

    Raises:
        StoreError: if there is no such checkpoint, or no other one.

    Examples:
        >>> import gradstore as gs
        >>> gs.drop_checkpoint("train.gradstore", 0)
        Store('train.gradstore', checkpoints=1, samples=7, slots=10, dim=64)
    """
    store = as_store(store)
    dropped = store.number(checkpoint)

    def change(now: Store) -> StoreSpec:
        places = [place for place, number in enumerate(now.numbers) if number != dropped]
        if not places:
            raise StoreError(
                f"{store.location} has only this checkpoint; nothing was changed. Remove the whole "
                "store instead."
            )
        identity = only_checkpoints(now.spec.identity, places)
        gone = [
            f"{part.path}/{what}/{dropped}".lstrip("/")
            for part in now.spec.parts
            for what in ("checkpoints", "seals")
        ]
        return now.spec.model_copy(
            update={
                "identity": identity,
                "fingerprint": fingerprint(identity),
                "checkpoints": _weighed([now.spec.checkpoints[place] for place in places]),
                "retired": [*now.spec.retired, *gone],
            }
        )

    return commit(store, "drop-checkpoint", change)


def _weighed(checkpoints: list[CheckpointSpec]) -> list[CheckpointSpec]:
    """Checkpoints with η as the difference of learning rate sums, if all have one."""
    sums = [checkpoint.learning_rate_sum for checkpoint in checkpoints]
    known = [one for one in sums if one is not None]
    if len(known) < len(sums):
        return checkpoints
    return [
        checkpoint.model_copy(update={"eta": own - before})
        for checkpoint, before, own in zip(checkpoints, [0.0, *known], known, strict=False)
    ]


def begin_checkpoint(store: Store, number: int, weights: str) -> None:
    """Create the arrays of a checkpoint in every part; `commit_checkpoint` adds it to the store.

    Args:
        store: the store.
        number: number of the new checkpoint, from `next_number`.
        weights: digest of its weights.

    Raises:
        StoreError: if another process has begun another checkpoint under that number.
    """
    under = f"checkpoints/{number}"
    try:
        for part in store.parts:
            contents = {
                key.removeprefix(f"{under}/"): content
                for key, content in array_objects(part.layout, [number]).items()
                if key.startswith(f"{under}/")
            }
            group = json.loads(contents[ROOT])
            contents[ROOT] = json.dumps({**group, "attributes": {_WEIGHTS: weights}}).encode()
            try:
                part.objects.create(part.key(under), contents)
            except FileExistsError:
                if _begun_with(part, number) != weights:
                    raise StoreError(
                        f"{part.location}: another process has begun another checkpoint. Run the "
                        "same command again."
                    ) from None
    except OSError as error:
        raise failed(store, error) from error


def commit_checkpoint(
    store: Store, parts: Sequence[Part], checkpoint: CheckpointSpec, identity: Identity
) -> Store:
    """Commit a checkpoint that was collected in every part.

    Args:
        store: the store without the checkpoint.
        parts: its parts, with the fingerprints of the new rows.
        checkpoint: the new checkpoint.
        identity: the new identity, of all checkpoints.

    Raises:
        StoreError: if the store was changed by another process, or the checkpoint is incomplete.
    """

    def change(now: Store) -> StoreSpec:
        if now.spec.parts != store.spec.parts or now.numbers != store.numbers:
            raise StoreError(
                f"{store.location} was changed by another process. Run the same command again: "
                "collected rows are kept."
            )
        if checkpoint.number < now.spec.next_number:
            raise StoreError(
                f"{store.location} was vacuumed while this ran. Run the same command again."
            )
        for part in parts:
            if checkpoint.metric_sha256 is not None:
                part.fits[checkpoint.number] = checkpoint.metric_sha256
            require_whole(now, part, checkpoint.number)
        return now.spec.model_copy(
            update={
                "identity": identity,
                "fingerprint": fingerprint(identity),
                "checkpoints": [*now.spec.checkpoints, checkpoint],
            }
        )

    return commit(store, "add-checkpoint", change)
