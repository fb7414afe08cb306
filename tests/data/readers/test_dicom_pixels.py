"""Values out of pixels: depth, sign, unused bits, rescaling, MONOCHROME1, colours, every transfer syntax."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pydicom
import pytest
from helpers import shared_data
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from dpeq.data.readers import dicom_pixels
from dpeq.data.readers.dicom_header import read_header
from dpeq.data.readers.dicom_series import read_dicom
from dpeq.data.readers.source import Refused, Source

RNG = np.random.default_rng(0)
MR = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}


def values(path):
    """``[rows, columns]``, or ``[rows, columns, channels]``, as read."""
    read_header(path)
    voxels = read_dicom(path.parent, Source("dicom", (path.name,))).voxels[..., 0]
    rows_first = voxels.transpose(2, 1, 0)
    return rows_first[..., 0] if len(voxels) == 1 else rows_first


def refusal(path):
    with pytest.raises(Refused) as caught:
        values(path)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["u1", "i1", "<u2", "<i2", "<u4", "<i4"])
def test_every_depth_and_sign(write_slice, kind):
    info = np.iinfo(kind)
    pixels = np.array([[info.min, info.max, 1], [0, 7, info.max - 1]], kind)
    np.testing.assert_array_equal(values(write_slice(pixels, **MR)), pixels.astype(np.float32))


def test_a_volume_is_columns_by_rows_and_float32(write_slice):
    path = write_slice(np.arange(12, dtype="<u2").reshape(3, 4))
    volume = read_dicom(path.parent, Source("dicom", (path.name,)))
    assert read_header(path).shape == volume.voxels.shape == (1, 4, 3, 1)
    assert volume.voxels.dtype == np.float32


@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored_are_no_part_of_the_value(write_slice, signed):
    """Old files keep overlays in the high bits (PS3.5 8.1.1)."""
    pixels = np.array([[0x7005, 0xF7FF, 0x0FFF, 0x1800]], "<u2")
    path = write_slice(pixels, BitsStored=12, HighBit=11, PixelRepresentation=int(signed), **MR)
    np.testing.assert_array_equal(values(path), [[5, 2047, -1, -2048] if signed else [5, 2047, 4095, 2048]])


def test_slope_and_intercept_are_applied_in_double_precision_and_rounded_once(write_slice):
    pixels = np.array([[65535, 65534, 3]], "<u2")
    slope, intercept = 4.25885225885225, -1024.7
    path = write_slice(pixels, RescaleSlope=slope, RescaleIntercept=intercept)
    np.testing.assert_array_equal(values(path), (pixels.astype(np.float64) * slope + intercept).astype(np.float32))
    thrice_rounded = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    assert (values(path) != thrice_rounded).any()


def test_values_that_float32_cannot_hold_are_refused(write_slice):
    path = write_slice(np.full((2, 2), 60000, "<u2"), RescaleSlope="1e38", RescaleIntercept=0)
    assert refusal(path) == "voxels that are not finite"


class TestMonochrome1:
    """PS3.3 C.7.6.3.1.2: the least value is shown white."""

    PIXELS = np.array([[0, 1, 4095]], "<u2")

    def test_is_mirrored_within_what_can_be_stored(self, write_slice):
        path = write_slice(
            self.PIXELS, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, **{**MR, "Modality": "DX"}
        )
        np.testing.assert_array_equal(values(path), [[4095, 4094, 0]])

    def test_of_signed_pixels(self, write_slice):
        pixels = np.array([[-32768, -1, 0, 32767]], "<i2")
        path = write_slice(pixels, PhotometricInterpretation="MONOCHROME1", **MR)
        np.testing.assert_array_equal(values(path), [[32767, 0, -1, -32768]])

    def test_before_or_after_rescaling_is_the_same(self, write_slice):
        path = write_slice(
            self.PIXELS, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11,
            Modality="CR", RescaleSlope=-2.0, RescaleIntercept=100.0,
        )  # fmt: skip
        rescaled = self.PIXELS * -2.0 + 100
        low, high = 100 - 2.0 * 4095, 100.0  # the rescaled range
        np.testing.assert_array_equal(values(path), low + high - rescaled)

    def test_quantities_keep_their_meaning(self, write_slice):
        path = write_slice(self.PIXELS, PhotometricInterpretation="MONOCHROME1")
        np.testing.assert_array_equal(values(path), self.PIXELS - 1024.0)  # Hounsfield units


class TestColours:
    PIXELS = RNG.integers(0, 256, (4, 6, 3)).astype("u1")

    @pytest.mark.parametrize("planar", [0, 1])
    def test_rgb_by_pixel_and_by_plane(self, write_slice, planar):
        stored = np.moveaxis(self.PIXELS, -1, 0) if planar else self.PIXELS
        path = write_slice(self.PIXELS, PlanarConfiguration=planar, PixelData=stored.tobytes())
        assert read_header(path).shape == (3, 6, 4, 1)
        np.testing.assert_array_equal(values(path), self.PIXELS)

    def test_ybr_full(self, write_slice):
        """PS3.3 C.7.6.3.1.2, equations for YBR_FULL, inverted."""
        y, cb, cr = (self.PIXELS[..., k].astype(float) for k in range(3))
        rgb = np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
                        y + 1.772 * (cb - 128)], -1)  # fmt: skip
        path = write_slice(self.PIXELS, PhotometricInterpretation="YBR_FULL")
        np.testing.assert_allclose(values(path), np.clip(rgb, 0, 255), atol=0.51)

    def test_ybr_full_422_shares_chroma_between_two_pixels(self, write_slice):
        stored = np.array([[90, 110, 128, 128], [30, 50, 128, 128]], "u1")  # Y Y Cb Cr
        path = write_slice(self.PIXELS[:2, :2], PhotometricInterpretation="YBR_FULL_422", PixelData=stored.tobytes())
        np.testing.assert_array_equal(values(path)[..., 1], [[90, 110], [30, 50]])

    @pytest.mark.parametrize(
        ("elements", "reason"),
        [
            ({"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"}, "palette colours"),
            ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "a photometric interpretation"),
            ({"PhotometricInterpretation": "MONOCHROME2"}, "a photometric interpretation"),
            ({"PhotometricInterpretation": "YBR_RCT"}, "a photometric interpretation"),
            ({"PhotometricInterpretation": None}, "a photometric interpretation"),
            ({"BitsStored": 7, "HighBit": 6}, "a depth"),
            ({"PixelRepresentation": 1}, "a depth"),
            ({"PlanarConfiguration": 2}, "stored bits"),
        ],
    )
    def test_others_are_refused(self, write_slice, elements, reason):
        assert refusal(write_slice(self.PIXELS, **elements)).startswith(reason)


GREY = RNG.integers(-2000, 2000, (7, 5)).astype("<i2")


def test_both_byte_orders_and_implicit_vr_and_deflated_agree(write_slice):
    for syntax, stored in (
        (uid.ImplicitVRLittleEndian, GREY),
        (uid.ExplicitVRBigEndian, GREY.astype(">i2")),
        (uid.DeflatedExplicitVRLittleEndian, GREY),
    ):
        path = write_slice(GREY, syntax.replace(".", "_"), syntax=syntax, PixelData=stored.tobytes(), **MR)
        np.testing.assert_array_equal(values(path), GREY, err_msg=syntax.name)


def test_bytes_in_big_endian_words(write_slice):
    """PS3.5 8.1.1: an OW of 8-bit pixels is swapped in pairs, the pad byte with the last one."""
    pixels = RNG.integers(0, 256, (3, 3)).astype("u1")
    swapped = np.append(pixels, 0).astype("u1").view("<u2").astype(">u2").tobytes()
    path = write_slice(pixels, syntax=uid.ExplicitVRBigEndian, PixelData=swapped, **MR)
    path.write_bytes(path.read_bytes().replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW"))
    np.testing.assert_array_equal(values(path), pixels)


@pytest.mark.parametrize("order", ["implicit", "explicit", "big"])
def test_a_file_without_preamble(write_slice, order):
    syntax = {"implicit": uid.ImplicitVRLittleEndian, "explicit": uid.ExplicitVRLittleEndian}.get(
        order, uid.ExplicitVRBigEndian
    )
    stored = GREY.astype(">i2") if order == "big" else GREY
    path = write_slice(GREY, syntax=syntax, PixelData=stored.tobytes(), **MR)
    everything = path.read_bytes()
    meta = 144 + int.from_bytes(everything[140:144], "little")
    path.write_bytes(everything[meta:])
    np.testing.assert_array_equal(values(path), GREY)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["<i2", "<u2", "u1", "rgb"])
def test_lossless_compression_changes_nothing(write_slice, syntax, kind):
    pixels = RNG.integers(-2000 if kind == "<i2" else 0, 200, (40, 36, 3) if kind == "rgb" else (40, 36))
    pixels = pixels.astype("u1" if kind == "rgb" else kind)
    path = write_slice(pixels, **MR)
    data = pydicom.dcmread(path)
    data.compress(syntax, pixels)
    data.save_as(path)
    np.testing.assert_array_equal(values(path), pixels)


def jpeg(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def test_baseline_jpeg_agrees_with_another_decoder(write_slice):
    pixels = np.add.outer(np.arange(16), np.arange(24)).astype("u1")
    stream = jpeg(pixels, quality=90)
    path = write_slice(pixels, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([stream]), **MR)
    ours, theirs = values(path), np.asarray(Image.open(io.BytesIO(stream)))
    assert np.abs(ours - theirs).max() <= 1  # another inverse transform rounds otherwise
    assert np.abs(ours - pixels).max() <= 4


SHARED = {
    "generic/compressed_j2k": ("pylibjpeg", "gdcm", "pillow"),
    "generic/compressed_jpegls": ("pyjpegls", "gdcm"),
    "generic/rgb": ("pylibjpeg", "gdcm", "pillow"),
}


@pytest.mark.parametrize("name", SHARED)
def test_decoders_agree_where_there_are_several(name):
    folder = shared_data("dicom", "encodings", *name.split("/"), "001")
    path = sorted(folder.iterdir())[0]
    data = pydicom.dcmread(path)
    decoder = get_decoder(data.file_meta.TransferSyntaxUID)
    for plugin in SHARED[name]:
        frame, _ = decoder.as_array(data, decoding_plugin=plugin)
        np.testing.assert_array_equal(values(path), frame, err_msg=plugin)


def test_the_decoders_are_named():
    """Whatever else is installed: one for each compressed syntax that is read."""
    for syntax, plugin in dicom_pixels._PLUGINS.items():
        assert plugin in get_decoder(syntax).available_plugins, uid.UID(syntax).name


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_floating_point_pixels(write_slice, kind):
    pixels = RNG.standard_normal((3, 4)).astype(kind)
    keyword = "FloatPixelData" if kind == "<f4" else "DoubleFloatPixelData"
    elements = {keyword: pixels.tobytes(), "PixelData": None, "BitsStored": None, "HighBit": None}
    path = write_slice(pixels, PixelRepresentation=None, **elements, **MR)
    np.testing.assert_array_equal(values(path), pixels.astype(np.float32))
    pixels[1, 1] = np.nan
    path = write_slice(pixels, PixelRepresentation=None, **{**elements, keyword: pixels.tobytes()}, **MR)
    assert refusal(path) == "voxels that are not finite"


REFUSED = {
    "a CT without rescale slope and intercept, so its values are not Hounsfield units": {"RescaleSlope": None},
    "a CT whose values are not Hounsfield units": {"RescaleType": "US"},
    "a rescale slope without intercept, or the reverse": {"Modality": "MR", "RescaleIntercept": None},
    "a rescale slope of zero": {"RescaleSlope": 0.0},
    "a header value that is missing or no number": {"Rows": None},
    "no rows, no columns or no frames": {"Columns": 0},
    "stored bits that contradict each other": {"HighBit": 14},
    "pixels of a single bit": {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0},
    "a depth of pixels that is not read": {"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11},
    "fewer pixels than the header promises": {"Rows": 8},
    "more pixels than the header promises": {"Rows": 6},
    "more pixels than one file may have": {"Rows": 60000, "Columns": 60000},
    "not an image (no pixels)": {"PixelData": None},
    "a transfer syntax that is not read": {"syntax": uid.MPEG2MPML, "PixelData": encapsulate([b"0123"])},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_read_exactly_is_refused(write_slice, reason):
    assert refusal(write_slice(GREY, **REFUSED[reason])) == reason


def test_a_syntax_that_contradicts_the_pixels_is_refused(write_slice):
    path = write_slice(GREY)
    fragments = write_slice(GREY, "fragments", syntax=uid.RLELossless, PixelData=encapsulate([b"0123"]))
    for file, (old, new), reason in (
        (path, (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"), "compressed pixels that are not in fragments"),
        (fragments, (b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0"), "uncompressed pixels of no known length"),
    ):
        changed = file.read_bytes().replace(old, new)
        assert changed != file.read_bytes()
        file.write_bytes(changed)
        assert refusal(file) == reason


def test_a_modality_table_is_refused(write_slice):
    table = pydicom.Dataset()
    table.LUTDescriptor = [2, 0, 16]
    assert "look-up table" in refusal(write_slice(GREY, ModalityLUTSequence=[table]))


def test_the_pad_byte_is_no_pixel_and_more_is_refused(write_slice):
    pixels = RNG.integers(0, 256, (3, 3)).astype("u1")
    np.testing.assert_array_equal(values(write_slice(pixels, PixelData=pixels.tobytes() + b"\0", **MR)), pixels)
    assert "more pixels" in refusal(write_slice(pixels, PixelData=pixels.tobytes() + b"\0\0\0", **MR))


def test_a_file_that_is_cut_anywhere_is_refused(write_slice):
    whole = write_slice(GREY).read_bytes()
    path = write_slice(GREY)
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        refusal(path)
    path.write_bytes(whole[:-1])
    assert refusal(path) == "pixels that are cut off"


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit])
def test_a_codestream_that_is_cut_anywhere_is_refused(write_slice, syntax):
    pixels = RNG.integers(0, 256, (32, 32)).astype("u1")
    path = write_slice(pixels, **MR)
    data = pydicom.dcmread(path)
    if syntax == uid.JPEGBaseline8Bit:
        stream = jpeg(pixels)
    else:
        data.compress(syntax, pixels, generate_instance_uid=False)
        stream = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)).rstrip(b"\0")
    last = 24 if syntax == uid.RLELossless else 1
    for length in [*range(2, len(stream) - 24, 29), len(stream) - 24, len(stream) - last]:
        cut = write_slice(pixels, syntax=syntax, PixelData=encapsulate([stream[:length]]), **MR)
        refusal(cut)


@pytest.mark.parametrize(
    ("syntax", "promise"),
    [
        (uid.JPEGBaseline8Bit, lambda s: s.replace(b"\x08\0\x20\0\x20", b"\x08\xff\xff\xff\xff")),
        (uid.JPEG2000Lossless, lambda s: s[:8] + b"\0\x01\x86\xa0" * 2 + s[16:]),
        (uid.JPEGLSLossless, lambda s: s.replace(b"\x08\0\x20\0\x20", b"\x08\xff\xff\xff\xff")),
        (uid.RLELossless, lambda s: b"\x0f" + s[1:]),
    ],
    ids=["jpeg", "j2k", "jls", "rle"],
)  # fmt: skip
def test_a_codestream_of_another_size_than_the_header_is_not_decoded(write_slice, syntax, promise):
    pixels = RNG.integers(0, 256, (32, 32)).astype("u1")
    data = pydicom.dcmread(write_slice(pixels, **MR))
    if syntax == uid.JPEGBaseline8Bit:
        stream = jpeg(pixels)
    else:
        data.compress(syntax, pixels)
        stream = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
    np.testing.assert_array_equal(
        values(write_slice(pixels, syntax=syntax, PixelData=encapsulate([stream]), **MR)).shape, pixels.shape
    )
    assert promise(stream) != stream
    path = write_slice(pixels, syntax=syntax, PixelData=encapsulate([promise(stream)]), **MR)
    assert refusal(path) == "compressed pixels of another size than the header says"


def test_a_promise_allocates_nothing(write_slice):
    path = write_slice(GREY, Rows=16000, Columns=16000, PixelData=encapsulate([b"\xff\xd8\xff\xd9"]),
                       syntax=uid.JPEGLossless, BitsAllocated=8, BitsStored=8, HighBit=7)  # fmt: skip
    native = write_slice(GREY, "native", Rows=16000, Columns=8000)
    swollen = write_slice(np.zeros((3000, 3000), "<u2"), "bomb", syntax=uid.DeflatedExplicitVRLittleEndian)
    assert swollen.stat().st_size < 100_000
    read_header(swollen)  # warm
    tracemalloc.start()
    try:
        for bad in (path, native):
            refusal(bad)
        read_header(swollen)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
