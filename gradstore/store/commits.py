"""The record of a store's changes: one small object per committed root object.

Each root object has a digest of all that it says, and the digest of the one before it. A commit
also leaves a record, `commits/REVISION.json`, after its root object is in place. So a root object
that was edited, or replaced by an older one, contradicts the records: a deletion cannot be undone
unnoticed. Records hold digests only, and no ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from gradstore.errors import StoreError
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.root import root_digest, root_state
from gradstore.store.format.spec import ChangeName, Sha256, Spec
from gradstore.store.objects.protocol import ChangedError, TooLargeError

if TYPE_CHECKING:
    from gradstore.store.format.spec import StoreSpec
    from gradstore.store.objects.protocol import Objects
    from gradstore.store.reader import Store

# What a change may change, and what users call it.
_SECTIONS: Final = {
    "identity": "what identifies its rows",
    "checkpoints": "its checkpoints or their weights η",
    "parts": "its parts of samples",
    "deleted": "its deleted samples",
}
_MOST_BYTES: Final = 65_536


class _DamagedError(StoreError):
    """A record cannot be read."""


class CommitRecord(Spec):
    """What is recorded of a root object.

    Attributes:
        revision: its revision.
        change: the change that it made effective.
        previous: digest of the root object before it; None if it is the first of its format.
        digest: its own digest.
        sections: digest of each section of it that changes can change.
    """

    revision: int
    change: ChangeName
    previous: Sha256 | None
    digest: Sha256
    sections: dict[str, Sha256]

    @classmethod
    def of(cls, spec: StoreSpec) -> CommitRecord:
        """The record of a root object."""
        state = root_state(spec)
        return cls(
            revision=spec.revision,
            change=spec.change,
            previous=spec.previous,
            digest=spec.digest or root_digest(state),
            sections={name: fingerprint(state[name]) for name in _SECTIONS},
        )


def record(objects: Objects, spec: StoreSpec) -> None:
    """Write the record of a root object that is in place.

    Raises:
        OSError: if it cannot be written.
    """
    key = _key(spec.revision)
    objects.write(key, CommitRecord.of(spec).model_dump_json(indent=1).encode())
    objects.flush([key])


def require_latest(now: Store) -> None:
    """Require that a store's root object is the last that was committed, and record it.

    A process that was killed after it replaced the root object has left no record.

    Raises:
        ChangedError: if another process is just changing the store.
        StoreError: if the root object contradicts a record.
        OSError: if records cannot be read or written.
    """
    objects, spec = now.objects, now.spec
    try:
        known = _read(now, spec.revision)
        if known is None:
            _require_following(now)
        else:
            _require_recorded(now, known)
    except _DamagedError:  # it follows from the root object
        known = None
    if known is None:
        record(objects, spec)
    later = _read(now, spec.revision + 1)
    if later is not None:
        if not now.is_current():
            raise ChangedError(f"{now.location} was changed by another process")
        raise _undone(now, later)


def check_commits(store: Store) -> None:
    """Compare a store's root object with the records of all commits.

    Raises:
        StoreError: if it, or a record, does not follow from the others. Names the commit.
    """
    if store.spec.format_version == 1:
        return
    try:
        names = store.objects.names("commits")
        stems = (name.removesuffix(".json") for name in names)
        known = {int(stem) for stem in stems if stem.isdecimal() and len(stem) < 17}
        later = [one for one in sorted(known) if one > store.spec.revision]
        if later and store.is_current():
            found = _read(store, later[0])
            if found is not None:
                raise _undone(store, found)
        recorded = _read(store, store.spec.revision)
        if recorded is None:
            _require_following(store)
        else:
            _require_recorded(store, recorded)
        expected, revision = store.spec.previous, store.spec.revision - 1
        # A lost record of an earlier commit hides nothing: later records find what was undone.
        while expected is not None and revision in known:
            before = _read(store, revision)
            if before is not None and before.digest != expected:
                raise StoreError(
                    f"{store.location}/{_key(revision)}, the record of a commit ({before.change}), "
                    "is not that of the commit that the next one followed. Restore it from a copy "
                    "of the store, or move it away."
                )
            expected = None if before is None else before.previous
            revision -= 1
    except OSError as error:
        raise StoreError(
            f"{store.location}: the records of its commits cannot be read: "
            f"{error.strerror or error}. Check that the disk or network is available."
        ) from error


def _require_following(store: Store) -> None:
    """Raise `StoreError` unless a root object without a record follows the last recorded one.

    A process that was killed before it wrote the record had recorded the root object before it.
    """
    spec = store.spec
    before = _read(store, spec.revision - 1)
    if before is None and spec.previous is None:
        known = (name.removesuffix(".json") for name in store.objects.names("commits"))
        if not any(one.isdecimal() and int(one[:17]) < spec.revision for one in known):
            return  # nothing was recorded yet
    if before is None or before.digest != spec.previous:
        raise StoreError(
            f"{store.location}/zarr.json says that it is of commit {spec.revision}, of which there "
            "is no record, and it does not follow the last recorded commit: it was changed by "
            "hand. Restore zarr.json from a copy of the store."
        )


def _require_recorded(store: Store, recorded: CommitRecord) -> None:
    """Raise `StoreError` if the record of the store's root object is of another one."""
    own = CommitRecord.of(store.spec)
    if recorded.digest == own.digest:
        return
    found = recorded.sections
    names = [text for name, text in _SECTIONS.items() if found.get(name) != own.sections[name]]
    raise StoreError(
        f"{store.location}/zarr.json was changed after commit {recorded.revision} "
        f"({recorded.change}): {' and '.join(names) or 'its provenance'} differ from what that "
        "commit recorded. Restore zarr.json from a copy of the store."
    )


def _undone(store: Store, later: CommitRecord) -> StoreError:
    return StoreError(
        f"{store.location}/zarr.json is of commit {store.spec.revision}, but commit "
        f"{later.revision} ({later.change}) followed it and was undone. Restore the last zarr.json "
        f"from a copy of the store; or, to keep this one, move {_key(later.revision)} and later "
        "records away."
    )


def _key(revision: int) -> str:
    return f"commits/{revision}.json"


def _read(store: Store, revision: int) -> CommitRecord | None:
    """The record of a commit; None if there is none."""
    try:
        content = store.objects.read(_key(revision), _MOST_BYTES)
    except FileNotFoundError:
        return None
    except TooLargeError:
        content = b""  # a damaged one
    try:
        return CommitRecord.model_validate_json(content)
    except ValidationError as error:
        raise _DamagedError(
            f"{store.location}/{_key(revision)}, the record of a commit, is damaged. Restore it "
            "from a copy of the store, or move it away."
        ) from error
