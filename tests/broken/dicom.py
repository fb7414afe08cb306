"""Single DICOM files whose bytes or values are broken."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from broken.case import ACCEPTED, broken
from broken.write import CT, PIXELS, compressed, dataset, dicom, element, inserted, series, study

CUT_HEADER = "not an image (no pixels)"


@broken("an empty file")
def empty_file(folder: Path) -> None:
    (folder / "a.dcm").touch()


@broken("not an image (zeros)")
def zeros(folder: Path) -> None:
    (folder / "a.dcm").write_bytes(bytes(10_000))


@broken("not a DICOM file")
def nothing_behind_the_preamble(folder: Path) -> None:
    (folder / "a.dcm").write_bytes(bytes(128) + b"DICM")


@broken("not a DICOM file")
def noise_behind_the_preamble(folder: Path) -> None:
    (folder / "a.dcm").write_bytes(bytes(128) + b"DICM\x02\0\0\0UL\4\0\xc8\0\0\0" + b"\x02\0\x10\0\xff\xff\xff\xff" * 9)


@broken({"preamble": "not an image (zeros)", "*": CUT_HEADER})
def cut_off_in_the_header(folder: Path) -> None:
    whole = dicom(folder / "whole").read_bytes()
    (folder / "whole").unlink()
    pixels = whole.rindex(b"\xe0\x7f\x10\x00")
    (folder / "preamble").write_bytes(whole[:120])
    for length in (pixels - 50, pixels - 25, pixels - 8, pixels, pixels + 4):
        (folder / f"{length}").write_bytes(whole[:length])


@broken("pixels that are cut off")
def cut_off_in_the_pixels(folder: Path) -> None:
    whole = dicom(folder / "whole").read_bytes()
    (folder / "whole").unlink()
    for lost in (1, 2, 50, PIXELS.nbytes):
        (folder / f"{lost}").write_bytes(whole[: len(whole) - lost])


@broken("a header value that is missing or no number")
def wrong_value_representation(folder: Path) -> None:
    content = dicom(folder / "a.dcm").read_bytes()
    at = content.index(b"\x28\0\x10\0US")
    (folder / "a.dcm").write_bytes(content[: at + 4] + b"SH" + content[at + 6 : at + 8] + b"ab" + content[at + 10 :])


@broken("a header value that is missing or no number")
def no_rows(folder: Path) -> None:
    dicom(folder / "a.dcm", Rows=None)


@broken("no rows, no columns or no frames")
def zero_columns(folder: Path) -> None:
    dicom(folder / "a.dcm", Columns=0)


@broken("more pixels than one file may have")
def absurd_size_native(folder: Path) -> None:
    """100,000 x 100,000, which US cannot hold but a wrong VR can."""
    content = dicom(folder / "a.dcm").read_bytes()
    for number in (0x10, 0x11):
        head = struct.pack("<HH", 0x28, number)
        at = content.index(head + b"US")
        content = content[:at] + element(0x28, number, b"UL", struct.pack("<I", 100_000)) + content[at + 10 :]
    (folder / "a.dcm").write_bytes(content)


@broken("fewer pixels than the header promises")
def large_size_native(folder: Path) -> None:
    dicom(folder / "a.dcm", Rows=10_000, Columns=10_000)


@broken("more pixels than the header promises")
def small_size_native(folder: Path) -> None:
    dicom(folder / "a.dcm", Rows=5)


@broken("fewer pixels than the header promises")
def pixel_data_of_no_length(folder: Path) -> None:
    dicom(folder / "a.dcm", PixelData=b"")


@broken("pixels that are cut off")
def pixel_data_of_a_length_that_lies(folder: Path) -> None:
    content = bytearray(dicom(folder / "a.dcm", Rows=10_000, Columns=10_000).read_bytes())
    at = content.rindex(b"\xe0\x7f\x10\x00")
    content[at + 8 : at + 12] = struct.pack("<I", 200_000_000)
    (folder / "a.dcm").write_bytes(content)


def siz(size: int, components: int = 1, depth: int = 16) -> bytes:
    """The start of a JPEG 2000 codestream (ITU T.800 A.5.1) of ``size`` x ``size``."""
    body = (
        struct.pack(">H8IH", 0, size, size, 0, 0, size, size, 0, 0, components) + bytes([depth - 1, 1, 1]) * components
    )
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(body) + 2) + body


@broken("compressed pixels of another size than the header says")
def absurd_size_in_the_codestream(folder: Path) -> None:
    compressed(folder / "a.dcm", siz(100_000) + b"\xff\xd9", JPEG2000Lossless)


@broken("more pixels than one file may have")
def absurd_size_in_codestream_and_header(folder: Path) -> None:
    compressed(folder / "a.dcm", siz(65_535) + bytes(100), JPEG2000Lossless, 65_535, 65_535)


@broken("pixels that cannot be decoded")
def large_size_in_codestream_and_header(folder: Path) -> None:
    """200 MB that 100 bytes do not hold."""
    compressed(folder / "a.dcm", siz(10_000) + b"\xff\xd9", JPEG2000Lossless, 10_000, 10_000)


@broken("pixels that cannot be decoded")
def a_codestream_of_noise(folder: Path) -> None:
    for name, syntax in (("j2k", JPEG2000Lossless), ("jls", JPEGLSLossless)):
        compressed(folder / name, bytes(range(256)), syntax, StudyInstanceUID=study(7 + ord(name[1])))


@broken("pixels that cannot be decoded")
def run_lengths_that_end_early(folder: Path) -> None:
    compressed(folder / "a.dcm", struct.pack("<16I", 2, 64, 70, *[0] * 13) + bytes(20), RLELossless)


@broken("compressed pixels that are not in fragments")
def compressed_pixels_of_a_length(folder: Path) -> None:
    path = dicom(folder / "a.dcm")
    path.write_bytes(path.read_bytes().replace(ExplicitVRLittleEndian.encode(), RLELossless.encode()))


@broken("pixels that are cut off")
def fragments_that_are_cut_off(folder: Path) -> None:
    path = compressed(folder / "a.dcm", bytes(200), JPEG2000Lossless)
    path.write_bytes(path.read_bytes()[:-60])


@broken("a deflated file that swells beyond reason")
def a_deflated_bomb(folder: Path) -> None:
    content = dicom(folder / "a.dcm", syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    # The meta information stays; behind it comes a comment of 400 MiB of zeros, in 400 kB.
    start = content.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian)
    squeeze = zlib.compressobj(9, wbits=-15)
    body = squeeze.compress(element(8, 0x16, b"UI", b"1.2\0") + b"\x20\0\x00\x40UT\0\0" + struct.pack("<I", 400 << 20))
    block = bytes(1 << 20)
    body += b"".join(squeeze.compress(block) for _ in range(400)) + squeeze.flush()
    (folder / "a.dcm").write_bytes(content[:start] + body)


@broken("a header nested or sized beyond reason")
def sequences_nested_100_000_deep(folder: Path) -> None:
    path = dicom(folder / "a.dcm")
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    inserted(path, item * 100_000)


@broken("not an image (no pixels)")
def an_element_longer_than_the_file(folder: Path) -> None:
    path = dicom(folder / "a.dcm")
    inserted(path, b"\x28\0\x00\x40UT\0\0" + struct.pack("<I", 0xFFFFFFF0))


@broken("a transfer syntax that is not read")
def unknown_transfer_syntax(folder: Path) -> None:
    dicom(folder / "a.dcm", syntax="1.2.3.4")


@broken("a transfer syntax that is not read")
def a_video(folder: Path) -> None:
    compressed(folder / "a.dcm", bytes(100), "1.2.840.10008.1.2.4.102")


@broken("not an image (no pixels)")
def no_pixel_data(folder: Path) -> None:
    dicom(folder / "a.dcm", PixelData=None)


@broken("stored bits that contradict each other")
def more_bits_stored_than_allocated(folder: Path) -> None:
    dicom(folder / "a.dcm", BitsStored=24, HighBit=23)


@broken("stored bits that contradict each other")
def bits_that_end_elsewhere(folder: Path) -> None:
    dicom(folder / "a.dcm", BitsStored=12, HighBit=15)


@broken("a depth of pixels that is not read")
def twelve_bits_allocated(folder: Path) -> None:
    dicom(folder / "a.dcm", BitsAllocated=12, BitsStored=12, HighBit=11)


@broken("pixels of a single bit")
def single_bits(folder: Path) -> None:
    dicom(folder / "a.dcm", BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=bytes(10))


@broken("a photometric interpretation that is not read")
def grey_of_three_samples(folder: Path) -> None:
    dicom(folder / "a.dcm", SamplesPerPixel=3)


@broken("palette colours, which are not read")
def palette(folder: Path) -> None:
    dicom(folder / "a.dcm", PhotometricInterpretation="PALETTE COLOR")


@broken("voxels that are not finite")
def rescaled_beyond_float(folder: Path) -> None:
    dicom(folder / "a.dcm", RescaleSlope=1e300, RescaleIntercept=0)


@broken("a header value that is missing or no number")
def slope_that_is_no_number(folder: Path) -> None:
    for text in (b"nan ", b"inf ", b"one "):
        path = dicom(folder / text.decode().strip(), RescaleSlope="4444", RescaleIntercept=0)
        path.write_bytes(path.read_bytes().replace(b"4444", text))


@broken("a rescale slope of zero")
def slope_of_zero(folder: Path) -> None:
    dicom(folder / "a.dcm", RescaleSlope=0, RescaleIntercept=1)


@broken("a CT without rescale slope and intercept, so its values are not Hounsfield units")
def ct_of_no_unit(folder: Path) -> None:
    dicom(folder / "a.dcm", SOPClassUID=CT, Modality="CT")


@broken("values behind a modality look-up table, which is not read")
def modality_table(folder: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "US", [0, 1, 2, 3]
    data = dataset(ModalityLUTSequence=Sequence([table]))
    data.ModalityLUTSequence[0]["LUTDescriptor"].VR = data.ModalityLUTSequence[0]["LUTData"].VR = "US"
    dicom(folder / "a.dcm", data)


@broken("voxels that are not finite")
def floating_point_without_numbers(folder: Path) -> None:
    values = np.full((8, 9), np.nan, "<f4")
    data = dataset(values, PixelData=None, BitsStored=None, HighBit=None, FloatPixelData=values.tobytes())
    dicom(folder / "a.dcm", data)


@broken("no patient id")
def no_patient(folder: Path) -> None:
    dicom(folder / "a.dcm", PatientID=None)
    dicom(folder / "b.dcm", PatientID="  ")


@broken("no study or series id")
def no_series(folder: Path) -> None:
    dicom(folder / "a.dcm", SeriesInstanceUID=None)
    dicom(folder / "b.dcm", StudyInstanceUID="")


@broken("no position, no orientation or no pixel spacing")
def no_geometry(folder: Path) -> None:
    for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        dicom(folder / keyword, **{keyword: None})


@broken("a pixel spacing that is not positive")
def spacing_of_zero(folder: Path) -> None:
    dicom(folder / "a.dcm", PixelSpacing=[0, 1])
    dicom(folder / "b.dcm", PixelSpacing=[1, -1])


@broken("a header value that is missing or no number")
def positions_of_two_numbers_or_none(folder: Path) -> None:
    dicom(folder / "two", ImagePositionPatient=[1, 2])
    path = dicom(folder / "text", ImagePositionPatient=[4444, 1, 2])
    path.write_bytes(path.read_bytes().replace(b"4444", b"left"))
    path = dicom(folder / "infinite", ImagePositionPatient=[4444, 1, 2])
    path.write_bytes(path.read_bytes().replace(b"4444", b"-inf"))


@broken("an orientation that is no pair of perpendicular unit vectors")
def orientation_of_no_directions(folder: Path) -> None:
    dicom(folder / "a.dcm", ImageOrientationPatient=[1, 0, 0, 1, 0, 0], StudyInstanceUID=study(3))
    dicom(folder / "b.dcm", ImageOrientationPatient=[0, 0, 0, 0, 0, 0], StudyInstanceUID=study(4))
    dicom(folder / "c.dcm", ImageOrientationPatient=[2, 0, 0, 0, 2, 0], StudyInstanceUID=study(5))


@broken(ACCEPTED)
def odd_text_in_whole_files(folder: Path) -> None:
    """Unknown character sets and names that are no text concern no voxel."""
    series(folder, SpecificCharacterSet="ISO_IR 4444", PatientName="Doe^Jane^^^")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"Doe^Jane^^^", b"\xff\xfe\0\x80^\xc3\x28=\\=="))


@broken(ACCEPTED)
def without_preamble(folder: Path) -> None:
    series(folder)
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[content.index(b"\x08\0\x16\0UI") :])


@broken("a gzip file that holds no NIfTI image")
def inside_gzip(folder: Path) -> None:
    path = dicom(folder / "a.dcm")
    path.write_bytes(gzip.compress(path.read_bytes()))


@broken("a zip archive that is no npz")
def inside_zip(folder: Path) -> None:
    path = dicom(folder / "a.dcm")
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", content)
