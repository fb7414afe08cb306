"""What is written, what is said in it, and what is refused."""

import json
import math
import shutil
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import yaml
from finished_runs import without_end
from safetensors.torch import load_file, save_file
from torch import nn

from dpeq.errors import ConfigError, DataError, DpeqError
from dpeq.export import Description, export, export_model, export_run, images, load_trained, plain_network
from dpeq.export.formats import run_torchscript, torchscript_is_deprecated
from dpeq.models.registry import build_model
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.plan import PrivacyPlan


def network(group: str = "C4", seed: int = 0) -> nn.Module:
    """With biases and scales of its own: zeros and ones would hide where they go."""
    model = build_model(ResNet9Spec(group, "none", (1, 1, 2), (1, 1, 1), stem_pool=True), 1, 3, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def described(**changes) -> Description:
    return Description(**{"name": "net", "classes": ("a", "b", "c"), **changes})


def metadata_of(exports) -> dict[str, dict]:
    """The metadata of each format, as its own tools read it."""
    props = onnxruntime.InferenceSession(str(exports["onnx"].path)).get_modelmeta().custom_metadata_map
    bundle = exports["monai"].path
    said = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert torchscript_metadata(bundle / "models" / "model.ts") == said
    return {
        "onnx": json.loads(props["dpeq"]),
        "torchscript": torchscript_metadata(exports["torchscript"].path),
        "monai": said,
    }


def torchscript_metadata(path: Path) -> dict:
    extra = {"metadata.json": ""}
    with torchscript_is_deprecated():
        torch.jit.load(str(path), _extra_files=extra)
    return json.loads(extra["metadata.json"])


def test_the_measured_errors_are_within_the_tolerance(exported_2d, exported_3d):
    for exports in (exported_2d, exported_3d):
        assert set(exports) == {"onnx", "torchscript", "monai"}
        assert all(0 <= e.error <= 1e-4 for e in exports.values())


def test_the_privacy_statement_is_that_of_the_plan_and_the_ledger(exported_2d, private_run):
    plan = PrivacyPlan.read(private_run / "plan.json")
    ledger = read_ledger(private_run / "ledger.jsonl")
    for said in metadata_of(exported_2d).values():
        privacy = said["privacy"]
        assert privacy["private"]
        assert privacy["label"] == "DIFFERENTIALLY PRIVATE"
        assert privacy["epsilon"] == plan.epsilon_spent <= 8
        assert (privacy["delta"], privacy["mu"], privacy["unit"]) == (1e-2, plan.mu, "image")
        assert privacy["neighbouring"] == "add_remove_one_unit"
        assert privacy["accountant"] == plan.accountant == "pld"
        assert "adding or removing one image" in privacy["statement"]
        assert PrivacyPlan.from_dict(privacy["plan"]) == plan
        assert privacy["ledger"] == {"head": ledger.head, "steps": 2}
        assert said["versions"]["trained_with_dpeq"]
        assert said["model"]["name"] == "eqresnet9-small"
        readme = (exported_2d["monai"].path / "docs" / "README.md").read_text()
        assert privacy["statement"] in readme
        assert ledger.head in readme


def test_a_run_without_privacy_says_so_first(exported_3d):
    said = metadata_of(exported_3d)
    for body in said.values():
        privacy = body["privacy"]
        assert not privacy["private"]
        assert (privacy["label"], privacy["epsilon"], privacy["mu"]) == ("NON-PRIVATE", "inf", None)
        assert privacy["statement"].startswith("NON-PRIVATE. This model was trained WITHOUT differential privacy")
    assert "NON-PRIVATE" in said["monai"]["description"]
    assert "**NON-PRIVATE**" in (exported_3d["monai"].path / "docs" / "README.md").read_text()
    props = {p.key: p.value for p in onnx.load(exported_3d["onnx"].path).metadata_props}
    assert props["privacy_label"] == "NON-PRIVATE"


def test_input_output_and_preprocessing_are_described(exported_2d, exported_3d):
    two, three = metadata_of(exported_2d), metadata_of(exported_3d)
    for kind in ("onnx", "torchscript"):
        assert two[kind]["input"] == {"name": "image", "dtype": "float32", "shape": ["batch", 1, 28, 28]}
        assert two[kind]["output"]["classes"] == ["normal", "pneumonia"]
        assert any("0 .. 255 to -1 .. 1" in step for step in two[kind]["preprocessing"]["steps"])
        steps = " ".join(three[kind]["preprocessing"]["steps"])
        for constant in ("20 x 20 x 20 mm", "-1000 .. 400", "16 x 12 x 8 voxels"):
            assert constant in steps


def test_the_bundle_metadata_keeps_to_the_schema(exported_2d, exported_3d):
    """The required fields of MONAI's meta_schema_20240725.json and their types."""
    texts = ["schema", "version", "monai_version", "pytorch_version", "numpy_version"]
    texts += ["task", "description", "authors", "copyright"]
    for exports, spatial in ((exported_2d, [28, 28]), (exported_3d, [16, 12, 8])):
        folder = exports["monai"].path
        said = json.loads((folder / "configs" / "metadata.json").read_text())
        assert all(isinstance(said[key], str) and said[key] for key in texts)
        assert isinstance(said["required_packages_version"], dict)
        assert said["version"] in said["changelog"]
        (image,) = said["network_data_format"]["inputs"].values()
        (pred,) = said["network_data_format"]["outputs"].values()
        for tensor in (image, pred):
            assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= tensor.keys()
        assert (image["num_channels"], image["spatial_shape"], pred["num_channels"]) == (1, spatial, 2)
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        needed = {"LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt"}
        assert needed <= files
        state = torch.load(folder / "models" / "model.pt", weights_only=True)
        assert state.keys() == run_torchscript(folder / "models" / "model.ts").state_dict().keys()


def test_no_path_of_this_machine_is_in_any_file(exported_2d, exported_3d, private_run):
    """torch's exporters write stack traces into their files, and those name folders of whoever exported."""
    places = {str(Path(export.__file__).parent.parent.parent), str(Path(torch.__file__).parent), "site-packages"}
    places |= {str(private_run.parent), str(Path.home())}
    for exported in [*exported_2d.values(), *exported_3d.values()]:
        files = [exported.path] if exported.path.is_file() else [p for p in exported.path.rglob("*") if p.is_file()]
        for path in files:
            content = path.read_bytes()
            for place in places:
                assert place.encode() not in content, f"{path.name} names {place}"


def test_the_exported_graph_is_a_plain_network(exported_2d):
    """Convolutions with stored filters; nothing that builds a filter from coefficients at run time."""
    model = onnx.load(exported_2d["onnx"].path)
    stored = {tensor.name for tensor in model.graph.initializer}
    kinds = [node.op_type for node in model.graph.node]
    assert "MatMul" not in kinds
    assert kinds.count("Gemm") == 1, "the classifier"
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 8
    assert all(set(node.input[1:]) <= stored for node in convolutions)
    assert not model.functions
    assert {entry.domain for entry in model.opset_import} == {""}


def test_another_image_size_is_refused_not_guessed(exported_2d):
    session = onnxruntime.InferenceSession(str(exported_2d["onnx"].path))
    wrong = torch.zeros(1, 1, 27, 28)
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {"image": wrong.numpy()})
    with pytest.raises(torch.jit.Error, match="must have the shape"):
        run_torchscript(exported_2d["torchscript"].path)(wrong)


def test_any_network_can_be_exported_and_no_statement_is_invented(tmp_path):
    files = export_model(network(), (1, 12, 12), tmp_path, ["torchscript", "monai"], described())
    assert [(e.format, e.path.name) for e in files] == [("torchscript", "net.ts"), ("monai", "net-bundle")]
    assert torchscript_metadata(files[0].path)["privacy"]["label"] == "NO PRIVACY STATEMENT"
    assert "NO PRIVACY STATEMENT" in (files[1].path / "docs" / "README.md").read_text()


@pytest.mark.parametrize("damage", [1e-3, float("nan")])
def test_a_file_that_computes_something_else_is_not_left_behind(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "run_onnx", lambda path: lambda x: network()(x) + damage)
    with pytest.raises(DpeqError, match="onnx export differs from the network by"):
        export_model(network(), (1, 12, 12), tmp_path, ["torchscript", "onnx"], described())
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_a_layer_makes_follow_the_image(tmp_path):
    """A device that is written into the file would break it on every other device."""

    class Ramp(nn.Module):
        def forward(self, x):
            return (x * torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)).mean(dim=(2, 3)).expand(-1, 3)

    (script,) = export_model(nn.Sequential(Ramp()), (1, 4, 4), tmp_path, ["torchscript"], described())
    graph = run_torchscript(script.path).inlined_graph
    kinds = {node.output().type().kind() for node in graph.findAllNodes("prim::Constant")}
    assert "DeviceObjType" not in kinds
    assert graph.findAllNodes("prim::device")


def test_a_batch_that_was_baked_in_is_found():
    class Baked(nn.Module):
        def forward(self, x):
            return x.reshape(2, 3)

    with pytest.raises(DpeqError, match="does not run on a batch of 1"):
        export.compare("It", nn.Flatten(), Baked(), (3,))


def test_a_network_that_depends_on_the_batch_is_refused(tmp_path):
    class Pairs(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] if len(x) == 2 else x.flatten(1)[:, 3:6]

    with pytest.raises(DpeqError, match="cannot be captured as one graph for any number of images"):
        export_model(Pairs(), (1, 4, 4), tmp_path, ["torchscript"], described())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dim", "size"), [(2, (5, 4)), (2, (1, 7)), (3, (3, 4, 2))])
def test_adaptive_pooling_is_exported(dim, size, tmp_path):
    """ONNX has no such operation; sizes that do not divide, that are kept, and that are 1."""
    pool = (nn.AdaptiveAvgPool2d if dim == 2 else nn.AdaptiveAvgPool3d)(size)
    model = nn.Sequential(pool, nn.Flatten(), nn.Linear(math.prod(size), 3))
    written = export_model(model, (1, *[7, 9, 5][:dim]), tmp_path, ["onnx", "torchscript"], described())
    assert max(exported.error for exported in written) <= 1e-5


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x.flatten(1)[:, :3])

    with pytest.raises(DpeqError, match=r"cannot be written as ONNX \(\S*bessel_j0\S* has no counterpart\)"):
        export_model(Odd(), (1, 4, 4), tmp_path, ["onnx"], described())
    assert list(tmp_path.iterdir()) == []


def test_a_network_whose_logits_are_not_numbers_is_refused(tmp_path):
    broken = network()
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    with pytest.raises(DpeqError, match="differs from the network by nan"):
        export_model(broken, (1, 12, 12), tmp_path, ["torchscript"], described())
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    state = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), r"^There is no checkpoint .*final\.safetensors; restore it"),
        (lambda path: path.write_bytes(b"\x00" * 64), r"^The checkpoint .* is broken \(.*\); restore it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), r"^The checkpoint .* is broken"),
        (
            lambda path: rewrite(path, classifier__bias=torch.zeros(5)),
            r"another network \(classifier\.bias has shape \(5,\), not \(2,\)\)",
        ),
        (lambda path: rewrite(path, classifier__bias=None), r"classifier\.bias has shape None"),
    ],
    ids=["missing", "zeros", "cut", "foreign", "incomplete"],
)
def test_a_checkpoint_that_cannot_be_used_is_named(harm, message, private_run, tmp_path):
    shutil.copytree(private_run, tmp_path / "run")
    without_end(tmp_path / "run")  # it pins the weights, and any others would be refused
    harm(tmp_path / "run" / "checkpoints" / "final.safetensors")
    with pytest.raises(DataError, match=message) as caught:
        export_run(tmp_path / "run", tmp_path / "out", ["torchscript"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_card_that_changed_since_the_run_is_refused(private_run, tmp_path):
    shutil.copytree(private_run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["data"]["classes"] = ["pneumonia", "normal"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    without_end(tmp_path / "run")  # it pins the record
    with pytest.raises(DataError, match="restore the card"):
        load_trained(tmp_path / "run")


def test_the_weights_that_were_evaluated_are_exported(private_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(private_run, copy)
    averaged = load_trained(copy).model.state_dict()
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps({**metrics, "weights": "raw"}))
    raw = load_trained(copy).model.state_dict()
    stored = load_file(copy / "checkpoints" / "raw.safetensors")
    assert all(torch.equal(raw[name], stored[name]) for name in stored)
    assert not torch.equal(raw["classifier.weight"], averaged["classifier.weight"])


def test_a_run_is_exported_where_its_data_is_not(private_run, tmp_path):
    """Paths of the configuration that mean nothing on this machine do not matter."""
    copy = tmp_path / "run"
    shutil.copytree(private_run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"] |= {"manifest": "/nowhere/manifest.json", "root": "/nowhere"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_trained(copy).prepared.shape == (1, 28, 28)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_before_anything_is_done(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}; run pip install 'dpeq\[export\]'\.$"):
        export_run(tmp_path / "no run", tmp_path / "out", ["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_wrong_formats_and_files_that_exist_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no export format 'tensorrt'; use one of: onnx, torchscript, monai"):
        export_model(network(), (1, 12, 12), tmp_path, ["tensorrt"], described())
    with pytest.raises(ConfigError, match="No format was named"):
        export_model(network(), (1, 12, 12), tmp_path, [], described())
    (tmp_path / "net.ts").write_text("mine")
    with pytest.raises(ConfigError, match=r"net\.ts exists already; remove it"):
        export_model(network(), (1, 12, 12), tmp_path, ["torchscript"], described())
    assert (tmp_path / "net.ts").read_text() == "mine"


def test_colour_pictures_are_read_as_such():
    reader = images((3, 32, 32)).transforms[0]["reader"]
    assert "RGB" in reader[1]["converter"]
    assert reader[0]["channel_dim"] == -1


@pytest.mark.parametrize("group", ["C4", "axial-D4"])
def test_the_plain_network_computes_the_same_in_torch_layers_alone(group):
    model = network(group)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = plain_network(model)
    x = torch.randn(3, 1, *[16, 12, 8][: 3 if group.startswith("axial") else 2])
    torch.testing.assert_close(plain(x), model(x), atol=1e-5, rtol=1e-5)
    for module in plain.modules():
        if module._parameters:
            assert type(module).__module__.startswith("torch.nn"), f"{type(module).__name__} holds parameters"
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_used_twice_stays_one_layer():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = next(m for m in network().modules() if hasattr(m, "plain"))
            self.second = self.first

    plain = plain_network(Doubled())
    assert plain.first is plain.second
    assert isinstance(plain.first, nn.Conv2d)


def test_a_foreign_network_may_call_a_layer_plain():
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Linear(3, 2)

        def forward(self, x):
            return self.plain(x)

    model, x = Foreign(), torch.randn(4, 3)
    assert torch.equal(plain_network(model)(x), model(x))


def test_constants_of_a_layer_move_with_the_exported_network():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.ones(3)

        def forward(self, x):
            return x + self.shift

    plain = plain_network(Shifted())
    assert "shift" in dict(plain.named_buffers())
    assert plain.to("meta").shift.is_meta
