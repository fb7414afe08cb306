"""Exported files in a process where neither dpeq nor escnn can be imported give the logits that dpeq gives."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from dpeq.data.index import index_folder
from dpeq.data.manifest import Manifest
from dpeq.data.readers.read import read
from dpeq.data.readers.source import Volume
from dpeq.data.settings import ImageSettings
from dpeq.data.transforms import ImageTransform
from dpeq.export import Description, export_model, indexed, load_trained
from dpeq.export.statement import no_statement
from dpeq.models.registry import ModelChoice, build_model, resolve_spec
from dpeq.resources import asset, load_module

PRELUDE = """
import sys
for name in ("dpeq", "escnn", "opacus", "lie_learn"):
    sys.modules[name] = None
for name in ("dpeq", "escnn"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported here, so this shows nothing")
import warnings
"""

RUNTIMES = (
    PRELUDE
    + """
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
import json
import numpy, onnxruntime
onnx_file, script_file, inputs, outputs = sys.argv[1:]
x = numpy.load(inputs)
session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
results = {f"onnx{n}": session.run(["logits"], {"image": x[:n]})[0] for n in (1, 2, 5)}
onnx_props = session.get_modelmeta().custom_metadata_map
assert "torch" not in sys.modules
import torch
extra = {"metadata.json": ""}
network = torch.jit.load(script_file, _extra_files=extra)
for n in (1, 2, 5):
    results[f"torchscript{n}"] = network(torch.from_numpy(x[:n])).numpy()
numpy.savez(outputs, **results)
print(json.dumps({"onnx": onnx_props, "torchscript": json.loads(extra["metadata.json"])}))
"""
)

BUNDLE = (
    PRELUDE
    + """
warnings.filterwarnings("ignore")
import os
import monai.bundle, numpy, torch
from monai.bundle.properties import InferProperties
parent, folder, inputs, outputs = sys.argv[1:]
network, metadata, _ = monai.bundle.load(folder, bundle_dir=parent, load_ts_module=True, device="cpu")
x = torch.from_numpy(numpy.load(inputs))
os.chdir(os.path.join(parent, folder))
built = monai.bundle.load(folder, bundle_dir=parent, workflow_type="inference", device="cpu")
numpy.savez(outputs, script=network(x).numpy(), built=built(x).numpy(), one=network(x[:1]).numpy())
monai.bundle.verify_net_in_out(
    "network", meta_file="configs/metadata.json", config_file="configs/inference.json", device="cpu"
)
parser = monai.bundle.ConfigParser()
parser.read_config("configs/inference.json")
for name, wanted in InferProperties.items():
    assert not wanted["required"] or wanted["id"] in parser, name
print(metadata["privacy"]["statement"])
monai.bundle.run(config_file="configs/inference.json")
"""
)


def elsewhere(script: str, *arguments: object, cwd) -> str:
    command = [sys.executable, "-I", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("dim", [2, 3])
def test_onnx_and_torchscript_reproduce_the_logits_at_any_batch_size(dim, request, tmp_path):
    trained = load_trained(request.getfixturevalue("private_run" if dim == 2 else "open_run"))
    exports = request.getfixturevalue("exported_2d" if dim == 2 else "exported_3d")
    x = 3 * torch.randn(5, *trained.prepared.shape)
    np.save(tmp_path / "x.npy", x.numpy())
    files = exports["onnx"].path, exports["torchscript"].path
    said = json.loads(elsewhere(RUNTIMES, *files, tmp_path / "x.npy", tmp_path / "out.npz", cwd=tmp_path))
    with torch.no_grad():
        expected = trained.model(x).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-2, "logits that hardly differ would show nothing"
    with np.load(tmp_path / "out.npz") as results:
        assert len(results.files) == 6
        for name in results.files:
            got = results[name]
            np.testing.assert_allclose(got, expected[: len(got)], atol=1e-4, rtol=1e-4, err_msg=name)
    statement = json.loads(said["onnx"]["dpeq"])["privacy"]["statement"]
    assert said["onnx"]["privacy_statement"] == said["torchscript"]["privacy"]["statement"] == statement
    assert statement.startswith("Training satisfies" if dim == 2 else "NON-PRIVATE")


def test_the_bundle_runs_on_pictures_and_arrays(exported_2d, private_run, tmp_path):
    bundle = tmp_path / "pneumonia-bundle"
    shutil.copytree(exported_2d["monai"].path, bundle)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    (bundle / "input").mkdir()
    Image.fromarray(pixels[0]).save(bundle / "input" / "0.png")
    Image.fromarray(np.repeat(pixels[1][..., None], 3, axis=2)).save(bundle / "input" / "1.png")
    np.save(bundle / "input" / "2.npy", pixels[2])
    images = torch.from_numpy(pixels).unsqueeze(1).float() / 127.5 - 1
    check_bundle(bundle, load_trained(private_run).model, images, tmp_path)


def test_the_bundle_runs_on_nifti_and_dicom(exported_3d, open_run, tmp_path):
    bundle = tmp_path / "volume-bundle"
    shutil.copytree(exported_3d["monai"].path, bundle)
    transform = ImageTransform(ImageSettings(preset="ct", spacing=(20, 20, 20), size=(16, 12, 8), window=(-1000, 400)))
    # Axes swapped and turned, unequal spacing: orientation and resampling must both happen.
    voxels = np.random.default_rng(0).normal(-300, 400, size=(40, 37, 21)).astype(np.float32)
    affine = np.array([[0, -5.5, 0, 3], [-6.1, 0, 0, 9], [0, 0, 9, -4], [0, 0, 0, 1.0]])
    (bundle / "input").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, affine), bundle / "input" / "0.nii.gz")
    expected = [transform(Volume(voxels[None], affine, "placed"))]

    hospital, manifest = tmp_path / "hospital", tmp_path / "manifest.json"
    load_module(asset("datasets", "phantom_hospital.py")).generate(hospital, patients=8, seed=0)
    index_folder(hospital / "archive", hospital / "labels.csv", manifest, classes=("healthy", "lesion"))
    index = Manifest.read(manifest)
    for number, record in enumerate(index.records[:3], start=1):
        series = bundle / "input" / str(number)
        series.mkdir()
        for file in record.files:
            shutil.copy(index.root / file, series)
        expected.append(transform(read(index.root, record.source)))
    check_bundle(bundle, load_trained(open_run).model, torch.cat(expected), tmp_path)


def test_the_bundle_tells_of_every_slice_of_a_volume(tmp_path):
    settings = ImageSettings(preset="mr", view="2.5d", size=(12, 12, 5), transforms=[{"name": "GaussianSmooth"}])
    choice = ModelChoice("eqresnet9-small", group="C4", fields=(1, 1, 2), norm_groups=(1, 1, 1))
    model = build_model(resolve_spec(choice, (3, 12, 12), 2), 3, 2, seed=0).eval()
    privacy = {"label": "not stated", "statement": "Nothing is known of its training."}
    description = Description("slices", ("no", "yes"), indexed(settings), {**no_statement(), **privacy})
    bundle = export_model(model, (3, 12, 12), tmp_path / "out", ["monai"], description)[0].path
    bundle = shutil.copytree(bundle, tmp_path / "slices-bundle")
    (bundle / "input").mkdir()
    expected = []
    for number in range(2):
        voxels = np.random.default_rng(number).gamma(2, 100 * (1 + number), (14, 11, 6)).astype(np.float32)
        affine = np.array([[0, -2.5, 0, 3], [-2.5, 0, 0, 9], [0, 0, 4, -4], [0, 0, 0, 1.0]])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), bundle / "input" / f"{number}.nii.gz")
        expected.append(ImageTransform(settings)(Volume(voxels[None], affine, "placed")))
    check_bundle(bundle, model, torch.cat(expected), tmp_path)
    predictions = json.loads((bundle / "output" / "predictions.json").read_text())
    files = [Path(prediction["image"]).name for prediction in predictions]
    assert files == ["0.nii.gz"] * 5 + ["1.nii.gz"] * 5


def check_bundle(bundle, model, images, folder) -> None:
    """Everything that MONAI does with a bundle, from the files in its ``input`` to ``predictions.json``."""
    np.save(folder / "x.npy", images.numpy())
    said = elsewhere(BUNDLE, folder, bundle.name, folder / "x.npy", folder / "out.npz", cwd=folder)
    with torch.no_grad():
        expected = model(images)
    assert expected.std(dim=0).max() > 1e-3, "images that look alike to the network would show nothing"
    with np.load(folder / "out.npz") as results:
        for name in ("script", "built", "one"):
            got = results[name]
            np.testing.assert_allclose(got, expected[: len(got)].numpy(), atol=1e-4, rtol=1e-4)
    predictions = json.loads((bundle / "output" / "predictions.json").read_text())
    logits = torch.tensor([p["logits"] for p in predictions])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    classes = list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values())
    for row, prediction in zip(expected.softmax(dim=1), predictions, strict=True):
        assert list(prediction["probabilities"]) == classes
        assert list(prediction["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-4)
        assert prediction["class"] == classes[int(row.argmax())]
    assert metadata["privacy"]["statement"] in said
