"""A MONAI bundle: network, preprocessing and an inference that needs MONAI alone.

Laid out by MONAI's bundle specification (https://docs.monai.io/en/stable/mb_specification.html); ``metadata.json``
keeps to the schema of 2024-07-25. The inference is configuration only: no code of ours is in the bundle, and
``python -m monai.bundle run`` needs no engine beside MONAI.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dpeq.export.description import INPUT, Description
from dpeq.export.formats import run_torchscript, write_torchscript
from dpeq.export.preprocessing import arrays
from dpeq.reporting.numbers import round_up

__all__ = ["run_bundle", "write_bundle"]

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_BUNDLE_VERSION = "1.0.0"


def write_bundle(program: ExportedProgram, input_shape: Sequence[int], folder: Path, description: Description) -> None:
    """Writes the folder of a bundle."""
    for part in ("configs", "docs", "models"):
        (folder / part).mkdir(parents=True)
    metadata = _metadata(description, input_shape)
    script = folder / "models" / "model.ts"
    write_torchscript(program, input_shape, script, metadata)
    # The specification asks for the weights alone too: tensors only, read with weights_only=True.
    torch.save(run_torchscript(script).state_dict(), folder / "models" / "model.pt")  # type: ignore[attr-defined]
    _write_json(folder / "configs" / "metadata.json", metadata)
    _write_json(folder / "configs" / "inference.json", _inference(description, input_shape))
    (folder / "docs" / "README.md").write_text(_readme(description, input_shape, folder.name), encoding="utf-8")
    (folder / "docs" / "data_license.txt").write_text(_data_licence(description), encoding="utf-8")
    (folder / "LICENSE").write_text(_licence(description), encoding="utf-8")


def run_bundle(folder: Path) -> Callable[[Tensor], Tensor]:
    """The network as the bundle's own configuration builds it, on the CPU."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(folder), "device": "$torch.device('cpu')"})
    return parser.get_parsed_content("network")  # type: ignore[no-any-return]


def _metadata(description: Description, input_shape: Sequence[int]) -> dict[str, Any]:
    facts = description.to_dict(input_shape)
    preprocessing = description.preprocessing or arrays(input_shape)
    channels, *spatial = input_shape
    classes = list(description.classes)
    data, model = description.data, description.model
    title = data.get("title")
    kind = model.get("architecture", "convolutional network")
    return {
        "schema": _SCHEMA,
        "version": _BUNDLE_VERSION,
        "changelog": {_BUNDLE_VERSION: "exported by dpeq"},
        "name": description.name,
        "monai_version": installed.version("monai"),
        "pytorch_version": installed.version("torch").split("+")[0],
        "numpy_version": installed.version("numpy"),
        "required_packages_version": {name: installed.version(name) for name in ("nibabel", "pydicom", "pillow")},
        "task": f"{len(spatial)}D image classification: {', '.join(classes)}",
        "description": f"{kind}, exported as a plain network{f'; trained on {title}' if title else ''}. "
        f"{facts['privacy']['statement']}",
        "authors": "Whoever ran the training; exported by dpeq",
        "copyright": "See LICENSE",
        "data_source": data.get("source") or "not stated",
        "data_type": preprocessing.reads,
        "image_classes": " ".join(preprocessing.steps) or "as trained",
        "pred_classes": f"logits of {', '.join(classes)}",
        "intended_use": facts["not_for"],
        "references": [data["citation"]] if data.get("citation") else [],
        "network_data_format": {
            "inputs": {
                INPUT: {
                    "type": "image",
                    "format": "hounsfield" if data.get("modality") == "CT" else "magnitude",
                    "modality": data.get("modality") or "not stated",
                    "num_channels": channels,
                    "spatial_shape": spatial,
                    "dtype": "float32",
                    "value_range": list(preprocessing.value_range),
                    "is_patch_data": False,
                    "channel_def": {str(c): "image" for c in range(channels)},
                }
            },
            "outputs": {
                "pred": {  # the name that MONAI's tools look for
                    "type": "logits",
                    "format": "classes",
                    "num_channels": len(classes),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(c): name for c, name in enumerate(classes)},
                }
            },
        },
        **{key: facts[key] for key in ("privacy", "preprocessing", "model", "data", "versions", "dpeq_export")},
    }


def _inference(description: Description, input_shape: Sequence[int]) -> dict[str, Any]:
    preprocessing = description.preprocessing or arrays(input_shape)
    return {
        "imports": ["$import json", "$import pathlib", "$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "classes": list(description.classes),
        "images": "$sorted(str(p) for p in pathlib.Path(@dataset_dir).iterdir() if not p.name.startswith('.'))",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": "$@bundle_root + '/models/model.ts'",
            "map_location": "@device",
        },
        "network": "$@network_def.to(@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": list(preprocessing.transforms)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path, 'file': path} for path in @images]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
        },
        "evaluator": {  # for tools that drive a bundle themselves; needs pytorch-ignite, the run below does not
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        # An image may give several rows: the slices of a volume, in their order.
        "rows": (
            "$[row for batch in @dataloader "
            "for row in zip(batch['file'], @inferer(batch['image'].to(@device), @network).cpu())]"
        ),
        "predictions": (
            "$[{'image': path, 'logits': row.tolist(), 'class': @classes[int(row.argmax())], "
            "'probabilities': dict(zip(@classes, @postprocessing({'pred': row})['pred'].tolist()))} "
            "for path, row in @rows]"
        ),
        "output_file": "$pathlib.Path(@output_dir) / 'predictions.json'",
        "run": [
            "$@output_file.parent.mkdir(parents=True, exist_ok=True)",
            "$@output_file.write_text(json.dumps(@predictions, indent=1) + '\\n', encoding='utf-8')",
            "$print(len(@predictions), 'predictions in', @output_file)",
        ],
    }


def _readme(description: Description, input_shape: Sequence[int], folder: str) -> str:
    privacy = description.privacy
    preprocessing = description.preprocessing or arrays(input_shape)
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(preprocessing.steps, start=1)) or "None."
    data = description.data
    trained = f"Trained on {data['title']} ({data.get('licence')}).\n\n" if data.get("title") else ""
    keys = ("epsilon", "delta", "mu", "unit", "neighbouring", "accountant", "steps")
    numbers = "".join(f"| {key} | {_shown(key, privacy[key])} |\n" for key in keys if privacy.get(key) is not None)
    table = f"\n| | |\n|---|---|\n{numbers}" if numbers else ""
    ledger = privacy.get("ledger")
    head = f"\nLedger head: `{ledger['head']}`, {ledger['steps']} steps.\n" if ledger else ""
    return f"""# {description.name}

**{privacy["label"]}**

{trained}A plain convolutional network: `{INPUT}` `[batch, {", ".join(map(str, input_shape))}]`, float32, to logits
`[batch, {len(description.classes)}]` of {", ".join(description.classes)}. Not a medical device.

## Privacy

{privacy["statement"]}
{table}{head}
The statement is about training. What the network computes about the image that it is given is not private.

## Run

Put the images into `input/` (each entry is one image) and run, in the folder of this bundle (MONAI's command line needs
the package fire):

    python -m monai.bundle run --config_file configs/inference.json

`output/predictions.json` then holds logits, probabilities and class of each. From anywhere else:

    python -m monai.bundle run --config_file BUNDLE/configs/inference.json \\
        --bundle_root BUNDLE --dataset_dir IMAGES --output_dir RESULTS

Each image is {preprocessing.reads}. Preprocessing, which the configuration does:

{steps}

## Load

    from monai.bundle import load
    network, metadata, _ = load("{folder}", bundle_dir="PARENT_FOLDER", load_ts_module=True)
    metadata["privacy"]["statement"]

`models/model.ts` is TorchScript, which PyTorch has deprecated but MONAI still uses; `dpeq export --format onnx` writes
the same network as ONNX. `models/model.pt` holds the weights alone.
"""


def _shown(key: str, value: Any) -> str:
    """Privacy losses are rounded up, as in the report."""
    return round_up(value, {"epsilon": 2, "mu": 3}[key]) if key in ("epsilon", "mu") and value != "inf" else str(value)


def _licence(description: Description) -> str:
    return (
        f"The owner of the model '{description.name}' has not stated a licence here. Put one in the place of this text "
        "before you pass the\nmodel on; without one, all rights are reserved. docs/data_license.txt names the terms of "
        "the training data.\n"
    )


def _data_licence(description: Description) -> str:
    data = description.data
    entries = (("Title", "title"), ("Source", "source"), ("Licence", "licence"), ("Citation", "citation"))
    lines = [f"{name}: {data[key]}" for name, key in entries if data.get(key)]
    return "\n".join(lines or ["Not stated."]) + "\n"


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
