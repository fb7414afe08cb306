"""The trained network as a plain convolutional network, for places where neither dpeq nor escnn is installed.

>>> from dpeq.export import export_run
>>> export_run(Path("runs/demo"), Path("exports"), ["onnx", "monai"])  # doctest: +SKIP
"""

from dpeq.export.description import Description
from dpeq.export.export import FORMATS, Exported, export_model, export_run
from dpeq.export.plain import plain_network
from dpeq.export.preprocessing import Preprocessing, arrays, images, indexed
from dpeq.export.source import Trained, load_trained

__all__ = [
    "FORMATS",
    "Description",
    "Exported",
    "Preprocessing",
    "Trained",
    "arrays",
    "export_model",
    "export_run",
    "images",
    "indexed",
    "load_trained",
    "plain_network",
]
