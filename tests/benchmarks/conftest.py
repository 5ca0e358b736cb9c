"""Images from scikit-learn for the planes-and-zeros setting, in its file format."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from benchmarks.worlds.setting import Folders


def _png(array: np.ndarray) -> dict[str, bytes]:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue()}


def _write(path: Path, column: str, images: list[np.ndarray], labels: list[int]) -> None:
    pq.write_table(pa.table({column: [_png(one) for one in images], "label": labels}), path)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Crops of two photographs stand for CIFAR-10, scikit-learn's digits for MNIST."""
    folder = tmp_path_factory.mktemp("bench")
    generator = np.random.default_rng(0)
    for name, count in (("cifar10-train", 60), ("cifar10-test", 12)):
        crops, labels = [], []
        for label, photo in (
            (0, "china.jpg"),
            (1, "flower.jpg"),
            (2, "flower.jpg"),
            (7, "china.jpg"),
        ):
            whole = load_sample_image(photo)
            for _ in range(count):
                y, x = generator.integers(0, 300), generator.integers(0, 500)
                crops.append(whole[y : y + 32, x : x + 32])
                labels.append(label)
        _write(folder / f"{name}.parquet", "img", crops, labels)
    digits = load_digits()
    rows = [row for row in range(500) if digits.target[row] < 5]
    images = [np.round(digits.images[row] * (255 / 16)).astype(np.uint8) for row in rows]
    _write(folder / "mnist.parquet", "image", images, digits.target[rows].tolist())
    return Folders(folder / "cache", folder)
