"""Files of Keras 3: all of a backbone is loaded or the file is refused, and no code in a file runs."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from models import guess_model, load_weights
from models.weight_files import WeightsError
from tests.helpers.keras3_files import write_as_keras3
from tests.helpers.toy_models import keras, randomise, real_model, toy_deeplab, toy_efficientdet

build = functools.lru_cache(
    lambda builder, which, **options: builder(**options)
)  # two alike: another `which`


def deeplab(which: int = 0, **options: int) -> keras.Model:
    return randomise(build(toy_deeplab, which, **options), seed=which)


def efficientdet(which: int = 0) -> keras.Model:
    return randomise(build(toy_efficientdet, which, fpn_min_level=3), seed=which)


CLASSES = ("Conv2D", "DepthwiseConv2D", "BatchNormalization")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that Keras 3 wrote itself."""
    folder = tmp_path_factory.mktemp("keras3")
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-m", "tests.helpers.keras3_files", str(folder), "B0", "B4"]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return folder


def backbone(model: keras.Model) -> dict[str, list[list[np.ndarray]]]:
    """The arrays of an EfficientDet's backbone by the class of the layer, layer after layer."""
    layers = [layer for layer in model.layers if layer.name.startswith("efficientnet-b")]
    return {c: [layer.get_weights() for layer in layers if type(layer).__name__ == c] for c in CLASSES}


def arrays_of(file: Path) -> dict[str, list[list[np.ndarray]]]:
    """The same of the arrays that were in Keras 3's model, without the layers that lead to its classes."""
    layers: dict[str, dict[str, list[np.ndarray]]] = {c: {} for c in CLASSES}
    with np.load(file) as arrays:
        for key, value in arrays.items():
            class_name, name, _ = key.split("/")
            if class_name in CLASSES and not name.startswith("top_"):
                layers[class_name].setdefault(name, []).append(value)
    return {class_name: list(found.values()) for class_name, found in layers.items()}


@pytest.mark.parametrize(
    "kind", ["B0.h5", "B0.keras", "B0.weights.h5", "tuned.keras", "tuned.h5", "exported"]
)
def test_every_variable_of_the_backbone_is_that_of_the_file(kind, written):
    model = randomise(real_model("effdetd0", 3, fpn_min_level=3), seed=7)
    report = load_weights(model, written / kind)
    np.testing.assert_equal(backbone(model), arrays_of(written / "B0.npz"))
    assert report.backbone == sum(name.startswith("efficientnet-b0") for name in report.loaded) == 304
    assert "among them all 304 of the backbone; random stay" in str(report)
    assert {name.partition("/")[0] for name in report.random} == {
        "resample_p6",
        "fpn_cells",
        "segmentation_head",
    }


def test_a_larger_network_loads_its_own_backbone_only(written):
    model = real_model("effdetd4", 3, fpn_min_level=3)
    load_weights(model, written / "B4.keras")
    np.testing.assert_equal(backbone(model), arrays_of(written / "B4.npz"))
    with pytest.raises(
        WeightsError, match=r"those of effdetd4\): block1a_bn/beta is \(48,\), the model's \(32,\)"
    ):
        load_weights(real_model("effdetd0", 3, fpn_min_level=3), written / "B4.keras")


def test_layers_without_names_are_known_by_their_number_or_refused(written, tmp_path):
    """So Keras before 3.6 wrote them."""
    file = Path(shutil.copy(written / "B0.weights.h5", tmp_path))
    with h5py.File(file, "r+") as content:
        content.visititems(lambda _, found: found.attrs.pop("name", None) and None)
    model = randomise(real_model("effdetd0", 3, fpn_min_level=3), seed=7)
    assert load_weights(model, file).backbone == 304
    np.testing.assert_equal(backbone(model), arrays_of(written / "B0.npz"))
    with h5py.File(file, "r+") as content:
        del content["layers/conv2d_7"]
    with pytest.raises(WeightsError, match="layers have no names"):
        load_weights(model, file)


@pytest.mark.parametrize("kind", ["a.h5", "a.weights.h5", "a.keras"])
def test_deeplab_with_another_number_of_classes(kind, tmp_path):
    saved, model = deeplab(1, num_classes=21), deeplab(2)
    report = load_weights(model, write_as_keras3(saved, tmp_path / kind))
    for ours, theirs in zip(model.layers, saved.layers):
        if ours.name != "logits_semantic":
            np.testing.assert_equal(ours.get_weights(), theirs.get_weights())
    assert report.random == report.other_classes == ("logits_semantic/kernel:0", "logits_semantic/bias:0")
    assert str(report).endswith("; random stay logits_semantic: the file has another number of classes")
    assert report.backbone == sum("_flow_" in name for name in report.loaded) > 100


def altered(tmp_path: Path, layer: str, change: str) -> Path:
    """A file of a toy network, one layer of which was changed."""
    file = tmp_path / "a.h5"
    efficientdet(0).save_weights(file)
    with h5py.File(file, "r+") as content:
        names = list(content[layer].attrs["weight_names"])
        if change == "lacks":
            content[layer].attrs["weight_names"] = names[:-1]
        elif change == "more":
            content[layer]["extra/bias"] = np.zeros(3, np.float32)
            content[layer].attrs["weight_names"] = [*names, "extra/bias"]
        elif change == "nan":
            content[layer][names[0]][...] = np.nan
        elif change == "text":
            shape = content[layer][names[0]].shape
            del content[layer][names[0]]
            content[layer].create_dataset(names[0], shape, dtype="S4")
    return file


DEPTHWISE = "efficientnet-b0/blocks_1/depthwise_conv2d"
NODE = "fpn_cells/cell_0/fnode0/op_after_combine5/bn"


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        (DEPTHWISE, "lacks", f"{DEPTHWISE}/depthwise_kernel:0 is missing in the file"),
        (DEPTHWISE, "more", f"{DEPTHWISE}/bias has no place in the model"),
        (NODE, "lacks", f"{NODE}/moving_variance:0 is missing in the file"),
        (DEPTHWISE, "nan", "has values that are infinite or not a number"),
        (DEPTHWISE, "text", "is of type |S4, but weights are numbers"),
    ],
)
def test_a_part_that_is_not_whole_is_an_error_that_names_it(layer, change, message, tmp_path):
    model = efficientdet(1)
    before = model.get_weights()
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_weights(model, altered(tmp_path, layer, change))
    np.testing.assert_equal(model.get_weights(), before)


def test_two_networks_in_a_file_are_an_error(tmp_path):
    image = keras.Input((32, 32, 3))
    networks = [
        keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))
        for _ in range(2)
    ]
    for i, network in enumerate(networks):
        network._name = f"network{i}"
    keras.Model(image, [network(image) for network in networks]).save_weights(tmp_path / "a.h5")
    with pytest.raises(
        WeightsError, match=r"network0/block1a_bn/beta:0 and network1/block1a_bn/beta:0 could both be meant"
    ):
        load_weights(real_model("effdetd0", 3, fpn_min_level=3), tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["evil.keras", "evil.h5", "really_h5.keras"])
def test_code_in_a_file_does_not_run(name, tmp_path):
    marker, file = tmp_path / "it ran", tmp_path / name
    inner = efficientdet(0)
    evil = keras.layers.Lambda(eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]"))
    keras.Model(inner.input, [inner(inner.input), evil(inner.input)]).save(
        file, save_format="keras" if name == "evil.keras" else "h5"
    )
    marker.unlink()
    model = efficientdet(1)
    assert load_weights(model, file).random == ()
    guess_model(file)
    np.testing.assert_equal(model.get_weights(), inner.get_weights())
    assert not marker.exists()
    source = file if name == "evil.keras" else file.rename(tmp_path / "a.h5")
    keras.models.load_model(source, compile=False, safe_mode=False)
    assert marker.exists()  # so it is code that would run


@pytest.mark.parametrize("kind", ["soft", "external", "outside", "virtual", "itself"])
def test_what_leads_out_of_a_file_is_refused(kind, tmp_path):
    model = deeplab()
    file = write_as_keras3(model, tmp_path / "a.weights.h5")
    model.save_weights(tmp_path / "other.h5")
    with h5py.File(file, "r+") as content:
        group = content["layers/conv2d/vars"]
        shape = group["0"].shape
        del group["0"]
        if kind == "soft":
            group["0"] = h5py.SoftLink("/layers/conv2d_1/vars/0")
        elif kind == "external":
            group["0"] = h5py.ExternalLink("other.h5", "/conv2d/kernel:0")
        elif kind == "outside":
            group.create_dataset(
                "0", shape, "f4", external=[(str(tmp_path / "other.h5"), 0, h5py.h5f.UNLIMITED)]
            )
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape)
            group.create_virtual_dataset("0", layout)
        else:
            content["layers/conv2d/again"] = content["layers"]
    expected = {"itself": "in itself", "outside": "in another file", "virtual": "in another file"}
    with pytest.raises(WeightsError, match=expected.get(kind, "is a link to somewhere else")):
        load_weights(model, file)


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_an_archive_that_unpacks_to_far_more_is_refused(member, tmp_path):
    file = tmp_path / "a.keras"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(1 << 24))
        if member != "config.json":
            archive.writestr("config.json", "{}")
    with pytest.raises(
        WeightsError, match=f"{member} in it has .* bytes, which unpack to more than 50 times"
    ):
        load_weights(deeplab(), file)


def test_a_torch_file_is_refused_and_names_what_is_missing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    for load in (guess_model, lambda file: load_weights(deeplab(), file)):
        with pytest.raises(WeightsError, match=r"a\.pth: is a zip archive without config\.json"):
            load(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["a.h5", "a.weights.h5", "a.keras"])
def test_a_truncated_file_is_one_line(kind, tmp_path):
    file = write_as_keras3(deeplab(), tmp_path / kind)
    content = file.read_bytes()
    for part in (0, 0.1, 0.5, 0.999):
        file.write_bytes(content[: int(part * len(content))])
        with pytest.raises(WeightsError, match=re.escape(str(file))) as caught:
            load_weights(deeplab(), file)
        assert "\n" not in str(caught.value)
