"""ONNX and TorchScript files, each run in its own runtime and compared before it counts as written.

Both have a free batch size and a fixed image size, the one that the network was trained at: another one is refused by
the runtime. PyTorch has deprecated TorchScript in favour of ``torch.export``; it is written because MONAI bundles and
C++ programs still read it.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dpeq.errors import ConfigError, DpeqError
from dpeq.export.capture import EXAMPLES, known_deprecations, traceable
from dpeq.export.description import INPUT, OUTPUT

__all__ = ["METADATA", "TOLERANCE", "compare", "require_onnx", "write_onnx", "write_torchscript"]

TOLERANCE = 1e-4
METADATA = "metadata.json"  # in a TorchScript archive; MONAI looks for this name too
_OPSET = 18  # the first with Mish and group norm's parts; runtimes since 2023 read it
_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding")
_COMPARED = (1, 3)  # batch sizes other than the one that the network was captured with


def require_onnx() -> None:
    """Raises :class:`ConfigError` when a package that ONNX needs is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"The ONNX format needs the package {name}; run pip install 'dpeq[export]'.") from error


def compare(what: str, model: nn.Module, run: Callable[[Tensor], Tensor], input_shape: Sequence[int]) -> float:
    """Largest difference of logits, relative to max(1, |logit|), on random inputs of batch 1 and 3.

    Raises:
        DpeqError: when it exceeds :data:`TOLERANCE` or is not a number.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in _COMPARED:
        x = torch.randn(batch, *input_shape, generator=generator)
        with torch.inference_mode():
            expected = model(x)
            try:
                got = run(x)
            except Exception as error:  # every runtime has errors of its own
                reason = " ".join(str(error).split())[:300]
                raise DpeqError(f"{what} does not run on a batch of {batch} ({reason}); report this.") from error
        if got.shape != expected.shape:
            raise DpeqError(f"{what} gives {list(got.shape)} logits, the network {list(expected.shape)}; report this.")
        error = float(((got - expected).abs() / expected.abs().clamp(min=1.0)).max())
        if not error <= TOLERANCE:
            raise DpeqError(
                f"{what} differs from the network by {error:.1e}, more than {TOLERANCE:.0e}, so it was not written; "
                "report this with the run's config.yaml."
            )
        worst = max(worst, error)
    return worst


def write_onnx(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Writes ``program`` as ONNX with weights inside and ``metadata`` in its ``metadata_props``.

    Raises:
        DpeqError: when an operation of the network has no counterpart in ONNX.
    """
    import onnx
    from torch.onnx import OnnxExporterError

    try:
        with _quiet_onnx():
            written = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
    except OnnxExporterError as error:
        reason = re.search(r"No ONNX function found for <OpOverload\(op='(.+?)'", str(error))
        what = f"{reason[1]} has no counterpart" if reason else " ".join(str(error).split())[:300]
        raise DpeqError(f"The network cannot be written as ONNX ({what}); use torchscript or monai.") from error
    model = written.model_proto
    _forget_where_it_was_made(model)
    privacy = metadata["privacy"]
    entries = {
        "dpeq": json.dumps(metadata, ensure_ascii=False),
        "privacy_label": privacy["label"],
        "privacy_statement": privacy["statement"],
        **{f"privacy_{key}": str(privacy[key]) for key in ("epsilon", "delta", "mu", "unit")},
        "classes": json.dumps(metadata["output"]["classes"], ensure_ascii=False),
    }
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)
    model.doc_string = privacy["statement"]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The file as a function, in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


class _FixedSize(nn.Module):
    """Refuses images of another size, on which a traced network would quietly compute something else."""

    def __init__(self, network: nn.Module, shape: list[int]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, image: Tensor) -> Tensor:
        if image.dim() != len(self.shape) + 1 or list(image.shape[1:]) != self.shape:
            raise ValueError(f"the image must have the shape [batch, ...] with {self.shape}, not {image.shape}")
        return self.network(image)


def write_torchscript(
    program: ExportedProgram, input_shape: Sequence[int], path: Path, metadata: dict[str, Any]
) -> None:
    """Writes ``program`` as TorchScript with ``metadata`` as the extra file :data:`METADATA`."""
    with torchscript_is_deprecated():
        traced = torch.jit.trace(traceable(program), (torch.zeros(EXAMPLES, *input_shape),), check_trace=False)
        _follow_the_image(traced)
        scripted = torch.jit.script(_FixedSize(traced, list(input_shape)))
        extra = {METADATA: json.dumps(metadata, ensure_ascii=False, indent=1).encode()}
        torch.jit.save(scripted, str(path), _extra_files=extra)
    _drop_debug_records(path)


def _follow_the_image(traced: Any) -> None:
    """Tensors that a forward pass makes were traced as made on the CPU; they belong where the image is."""
    graph = traced.graph
    torch._C._jit_pass_inline(graph)
    _, image = graph.inputs()
    for constant in graph.findAllNodes("prim::Constant"):
        if constant.output().type().kind() == "DeviceObjType":
            device = graph.create("prim::device", [image]).insertBefore(constant)
            device.output().setType(constant.output().type())
            constant.output().replaceAllUsesWith(device.output())
            constant.destroy()


def run_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    """The file as a function, on the CPU."""
    with torchscript_is_deprecated():
        return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-any-return]


@contextmanager
def torchscript_is_deprecated() -> Iterator[None]:
    """PyTorch's notice that TorchScript is deprecated, and the tracer's that shapes become constants, are known."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


@contextmanager
def _quiet_onnx() -> Iterator[None]:
    """torch's exporter logs that torchvision is missing and what it cannot fold, and uses what torch has deprecated."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with known_deprecations():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _forget_where_it_was_made(model: Any) -> None:
    """torch writes stack traces with the paths of this machine into the file; they are nobody's business."""
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for function in model.functions:
        parts += [function, *function.node, *function.value_info]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _drop_debug_records(path: Path) -> None:
    """TorchScript keeps the source locations of this machine in ``*.debug_pkl``; nothing needs them to run."""
    stripped = path.with_name(f"{path.name}.stripped")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(entry, source.read(entry), zipfile.ZIP_STORED)
    stripped.replace(path)
