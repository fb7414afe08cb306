"""A few evaluation images with the model's answers, for a report that was explicitly asked to show some."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dpeq.config import load_config
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError, DataError
from dpeq.evaluation.cases import Cases, cases_of
from dpeq.evaluation.predict import predict_cases
from dpeq.models.registry import build_model
from dpeq.training.files import fingerprint_key
from dpeq.training.prepare import choose_device, load_data, prepare
from dpeq.training.scoring import WEIGHTS, load_weights
from dpeq.training.start import fingerprint

__all__ = ["chosen", "evaluation_images", "grey"]


def evaluation_images(run: Path, count: int, *, data_root: Path | None = None) -> dict[str, Any]:
    """The report's entry ``images``: ``count`` cases of the test split, each with one greyscale picture.

    Half of them are answered wrongly, where there are so many; they are spread evenly over the split. The same run
    gives the same pictures. A case is left out if the header of any of its images declares text in the pixels.

    ``data_root`` is the folder that holds the data set's file, where it is not where the run found it. Raises
    :class:`ConfigError` for a count below 1, :class:`DataError` for missing weights, other data than the run's, or a
    split in which every case declares text in its pixels.
    """
    if count < 1:
        raise ConfigError(f"--images is {count}; ask for at least one, or leave it out.")
    config = load_config(run / "config.yaml", data_root=data_root)
    prepared = prepare(config)
    device = choose_device(config.training.device)
    model = build_model(prepared.spec, prepared.shape[0], len(prepared.card.classes), seed=0)
    load_weights(model, run / "checkpoints" / f"{WEIGHTS[config.evaluation.weights]}.safetensors")
    splits = load_data(prepared)
    recorded = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]["sha256"]
    if fingerprint(splits, fingerprint_key(run.resolve().parent, make=False)) != recorded:
        raise DataError(
            f"This is not the data that {run} was trained and scored on (its fingerprint differs); give the same data, "
            "by --data-root for one."
        )
    test = splits["test"]
    cases = cases_of(test)
    probabilities = predict_cases(model, test, cases, device=device)
    answers = probabilities.argmax(dim=1)
    first = torch.full((len(cases),), len(test.labels)).scatter_reduce(
        0, cases.of_images, torch.arange(len(test.labels)), "amin"
    )
    clean = np.flatnonzero(~_marked(test, cases))
    if not len(clean):
        raise DataError("The headers of all test cases declare text in their pixels; leave --images out.")
    items = []
    for case in clean[chosen((answers == cases.labels).numpy()[clean], count)].tolist():
        answer = int(answers[case])
        items.append(
            {
                "png": grey(test.images[int(first[case])]),
                "truth": test.classes[int(cases.labels[case])],
                "answer": test.classes[answer],
                "probability": min(float(probabilities[case, answer]), 1.0),
                "correct": bool(answers[case] == cases.labels[case]),
            }
        )
    return {
        "consent": f"These images were asked for by the option --images {count}. They show people of the test split, "
        "whom the guarantee does not cover and whom an image may identify: pass this report on only where the images "
        f"themselves may go. {_left_out(len(cases) - len(clean))}",
        "items": items,
    }


def _marked(images: ImageSet, cases: Cases) -> npt.NDArray[np.bool_]:
    """Whether a header of a case declares text in its pixels, which may name the patient, ``[len(cases)]``."""
    marked = np.zeros(len(cases), dtype=bool)
    if images.burned_in is not None:
        marked[cases.of_images[images.burned_in].numpy()] = True
    return marked


def _left_out(count: int) -> str:
    cases = "1 case whose header declares" if count == 1 else f"{count} cases whose headers declare"
    left = f" {cases} text in the pixels: left out." if count else ""
    return f"Text in pixels is not looked for: an image may show a name that no header declares.{left}"


def chosen(correct: npt.NDArray[np.bool_], count: int) -> list[int]:
    """Rising indices of up to ``count`` cases, spread evenly, half of them wrong as far as there are so many."""
    wrong, right = np.flatnonzero(~correct), np.flatnonzero(correct)
    take = min(count // 2, len(wrong))
    of_right = min(count - take, len(right))
    take = min(count - of_right, len(wrong))
    return sorted([*_spread(wrong, take), *_spread(right, of_right)])


def _spread(values: npt.NDArray[np.int64], count: int) -> list[int]:
    places = (np.arange(count) + 0.5) * len(values) / max(count, 1)
    return [int(values[int(place)]) for place in places]


def grey(image: Tensor) -> str:
    """A float image ``[channels, *spatial]`` as a PNG in base64: channels averaged, volumes by their middle slice."""
    plane = image.mean(dim=0)
    if plane.ndim == 3:
        plane = plane[plane.shape[0] // 2]
    low, high = float(plane.min()), float(plane.max())
    scaled = (plane - low) / (high - low) if high > low else torch.zeros_like(plane)
    stream = io.BytesIO()
    Image.fromarray((scaled * 255.0).round().to(torch.uint8).numpy(), "L").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")
