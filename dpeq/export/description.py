"""What an exported file says of itself: what goes in, what comes out, how private it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpeq import __version__
from dpeq.export.preprocessing import Preprocessing, images, indexed
from dpeq.export.source import Trained
from dpeq.export.statement import no_statement, privacy_statement
from dpeq.reporting.audit import read_audits

__all__ = ["INPUT", "OUTPUT", "Description", "describe_run"]

INPUT, OUTPUT = "image", "logits"
_VERSION = "1.0"


@dataclass(frozen=True)
class Description:
    """Facts about a network; ``model``, ``data`` and ``privacy`` are JSON.

    Attributes:
        name: of the exported files.
        classes: what the logits stand for, in order.
        preprocessing: from a file to the input; None means that files hold the input itself.
        privacy: as :func:`dpeq.export.statement.privacy_statement` gives it.
        model: what the report says of the network.
        data: title, source, licence, citation and modality of the training data, as far as known.
        dpeq: version that trained the network.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None = None
    privacy: dict[str, Any] = field(default_factory=no_statement)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    dpeq: str | None = None

    def to_dict(self, input_shape: Sequence[int]) -> dict[str, Any]:
        """The metadata of every format; holds neither paths nor command lines, which may name people."""
        body = {
            "dpeq_export": _VERSION,
            "name": self.name,
            "privacy": self.privacy,
            "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", *input_shape]},
            "output": {
                "name": OUTPUT,
                "dtype": "float32",
                "shape": ["batch", len(self.classes)],
                "classes": list(self.classes),
                "note": "Unnormalised; softmax over the classes gives probabilities. The score of a patient with "
                "several images is the mean of the images' probabilities.",
            },
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "model": self.model,
            "data": self.data,
            "versions": {"trained_with_dpeq": self.dpeq, "exported_with_dpeq": __version__},
            "not_for": "Not a medical device; not for diagnosis.",
        }
        return dict(json.loads(json.dumps(body, allow_nan=False)))


def describe_run(trained: Trained) -> Description:
    """The description of a run's network; recomputes epsilon, which takes a few seconds."""
    source, prepared = trained.run, trained.prepared
    card = prepared.card
    settings = prepared.preprocessing
    preprocessing = images(prepared.shape) if settings is None else indexed(settings, card.channels)
    facts = ("title", "source", "licence", "citation", "modality")
    return Description(
        name=source.path.resolve().name,
        classes=tuple(card.classes),
        preprocessing=preprocessing,
        privacy=privacy_statement(source.plan, source.ledger, read_audits(source.path)),
        model={**source.run["model"], "weights": trained.weights},
        data={name: getattr(card, name) for name in facts},
        dpeq=source.run.get("dpeq"),
    )
