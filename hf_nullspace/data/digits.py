"""Real images that need no download: handwritten digits, and a small vision transformer for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from datasets import DatasetDict

# The name of the dataset in model cards.
DIGITS_NAME = "scikit-learn digits"


def load_digits_splits(seed: int = 42) -> DatasetDict:
    """
    The 1,797 handwritten digits that ship inside scikit-learn, as `train`, `validation` and `test` splits.

    Columns: `image` (8x8 grey-scale pictures) and `label`. 60, 20 and 20 per cent of each class.

    Raises:
        `ImportError`: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits need scikit-learn: `pip install 'hf_nullspace[eval]'`.") from error
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    digits = load_digits()
    pictures = [Image.fromarray((picture * (255 / 16)).astype(np.uint8)) for picture in digits.images]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    dataset = Dataset.from_dict({"image": pictures, "label": digits.target}, features=features)
    first = dataset.train_test_split(0.4, stratify_by_column="label", seed=seed)
    second = first["test"].train_test_split(0.5, stratify_by_column="label", seed=seed)
    return DatasetDict(train=first["train"], validation=second["train"], test=second["test"])
