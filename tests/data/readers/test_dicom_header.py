"""Headers: what is no image, what is missing, flat images, and bytes that are none of these."""

from __future__ import annotations

import ast
import logging
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import config, uid
from pydicom.data import get_testdata_file

from dpeq.data import readers
from dpeq.data.readers import dicom_file, dicom_header
from dpeq.data.readers.dicom_file import quiet
from dpeq.data.readers.dicom_frames import read_enhanced
from dpeq.data.readers.dicom_header import read_header
from dpeq.data.readers.dicom_series import assemble, read_dicom
from dpeq.data.readers.source import Header, Refused, Source

GREY = np.arange(30, dtype="<u2").reshape(5, 6)
XRAY = {"Modality": "DX", "RescaleSlope": None, "RescaleIntercept": None, "ImagePositionPatient": None,
        "ImageOrientationPatient": None}  # fmt: skip


def refusal(path):
    with pytest.raises(Refused) as caught:
        read_header(path)
    return caught.value


def test_a_header_says_which_image_it_is_of_and_where_it_lies(write_slice):
    path = write_slice(GREY, InstanceNumber=7, SliceThickness=4.0, SpacingBetweenSlices=5.0, EchoTime=3.5,
                       ImageType=["ORIGINAL", "PRIMARY"], SOPInstanceUID="2.25.9")  # fmt: skip
    header = read_header(path)
    assert (header.format, header.modality, header.shape) == ("dicom", "CT", (1, 6, 5, 1))
    assert (header.patient, header.study, header.series) == ("P1", "2.25.1", "2.25.2")
    assert header.slice is not None
    assert header.slice.orientation == (1.0, 0, 0, 0, 1, 0)
    assert header.slice.spacing == (2.0, 3.0)
    assert (header.slice.thickness, header.slice.number, header.slice.instance) == (5.0, 7, "2.25.9")
    assert header.slice.keys == (("ImageType", "ORIGINAL\\PRIMARY"), ("EchoTime", "3.5"))
    assert not header.burned_in
    assert Header.from_json(header.to_json()) == header


def test_groups_are_said_in_words_that_name_nobody(write_slice):
    said = {"PatientSex": "F", "PatientAge": "045Y", "Manufacturer": "SIEMENS HEALTHINEERS, Doe"}
    path = write_slice(GREY, InstitutionName=" St.  Doe\tHospital", PatientBirthDate="19610203", **said)
    header = read_header(path)
    assert dict(header.groups) == {"sex": "female", "age": "40-49", "site": "st. doe hospital", "device": "Siemens"}
    assert Header.from_json(header.to_json()) == header
    assert read_header(write_slice(GREY, PatientBirthDate="19610203", StudyDate="20200101")).groups == ()
    other = read_header(write_slice(GREY, PatientSex="f\\m", PatientAge="45", Manufacturer="Doe"))
    assert other.groups == (("device", "other"),)


def test_an_image_is_not_lost_for_a_group_that_cannot_be_read(write_slice, monkeypatch):
    def broken(data, keyword):
        if keyword == "PatientAge":
            raise Refused("a header value that cannot be read", "Doe")
        return dicom_file.text(data, keyword)

    path = write_slice(GREY, PatientSex="M", PatientAge="045Y")
    monkeypatch.setattr(dicom_header, "text", broken)
    assert read_header(path).groups == (("sex", "male"),)


def test_identifying_attributes_are_named_and_their_values_are_not(write_slice):
    header = read_header(write_slice(GREY, BurnedInAnnotation="YES", InstitutionName=""))
    assert header.burned_in
    assert {"PatientName", "PatientBirthDate", "PatientID"} <= set(header.identifying)
    assert "InstitutionName" not in header.identifying  # it is empty
    assert "Doe" not in header.to_json()


@pytest.mark.parametrize(
    ("code", "word"), [("PT", "PET"), ("dx", "X-ray"), ("MR", "MR"), ("DOE^JANE", "other"), (None, "")]
)
def test_a_modality_is_one_of_the_cards_words_and_never_what_a_file_says(write_slice, code, word):
    path = write_slice(GREY, Modality=code, SOPClassUID=uid.SecondaryCaptureImageStorage)
    assert read_header(path).modality == word


NO_IMAGES = {
    "not an image (RT structure set)": uid.RTStructureSetStorage,
    "not an image (RT plan)": uid.RTPlanStorage,
    "not an image (RT dose)": uid.RTDoseStorage,
    "not an image (RT record)": uid.RTBeamsTreatmentRecordStorage,
    "not an image (segmentation)": uid.SegmentationStorage,
    "not an image (structured report)": uid.EnhancedSRStorage,
    "not an image (presentation state)": uid.GrayscaleSoftcopyPresentationStateStorage,
    "not an image (key objects)": uid.KeyObjectSelectionDocumentStorage,
    "not an image (waveform)": uid.TwelveLeadECGWaveformStorage,
    "not an image (encapsulated document)": uid.EncapsulatedPDFStorage,
    "not an image (raw data)": uid.RawDataStorage,
    "not an image (registration)": uid.SpatialRegistrationStorage,
    "not an image (spectroscopy)": uid.MRSpectroscopyStorage,
    "not an image (DICOMDIR)": uid.MediaStorageDirectoryStorage,
    "a whole-slide microscopy image, which is not read": uid.VLWholeSlideMicroscopyImageStorage,
    "an image of a radiotherapy device, which is not read": uid.RTImageStorage,
}


@pytest.mark.parametrize("reason", NO_IMAGES)
def test_what_is_no_image_is_told_by_its_class(write_slice, reason):
    assert refusal(write_slice(GREY, SOPClassUID=NO_IMAGES[reason])).reason == reason


def test_image_classes_are_no_part_of_a_family_that_is_none(write_slice):
    for name in (
        "CTImageStorage", "MRImageStorage", "PositronEmissionTomographyImageStorage", "UltrasoundImageStorage",
        "SecondaryCaptureImageStorage", "ComputedRadiographyImageStorage", "DigitalXRayImageStorageForPresentation",
        "DigitalMammographyXRayImageStorageForPresentation", "NuclearMedicineImageStorage",
        "XRayAngiographicImageStorage", "OphthalmicPhotography8BitImageStorage", "EnhancedUSVolumeStorage",
        "BreastTomosynthesisImageStorage", "MultiFrameGrayscaleByteSecondaryCaptureImageStorage",
    ):  # fmt: skip
        read_header(write_slice(GREY, SOPClassUID=getattr(uid, name)))


REFUSED = {
    "no patient id": {"PatientID": " "},
    "no study or series id": {"SeriesInstanceUID": None},
    "no SOP class, so it is not known what it is": {"SOPClassUID": None},
    "a localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "a mosaic": {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]},
    "a film without geometry": {"NumberOfFrames": 2, "PixelData": GREY.tobytes() * 2},
    "no position, no orientation or no pixel spacing": {"ImagePositionPatient": None},
    "a pixel spacing that is not positive": {"PixelSpacing": [0.0, 1.0]},
    "a position or spacing beyond any patient": {"ImagePositionPatient": [0.0, 0.0, 1e7]},
    "a header value that is missing or no number": {"PixelSpacing": [1.0, 2.0, 3.0]},
    "an orientation that is no pair of perpendicular unit vectors": {"ImageOrientationPatient": [1.0, 0, 0, 1, 0, 0]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_header_that_leaves_anything_to_guess_is_refused(write_slice, reason):
    path = write_slice(GREY, **REFUSED[reason])
    if "SOPClassUID" in REFUSED[reason]:
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"\0" * 26))
    assert refusal(path).reason == reason


def test_every_part_of_the_geometry_is_asked_for(write_slice):
    for keyword in ("ImageOrientationPatient", "PixelSpacing", "ImagePositionPatient"):
        for modality in ("MR", "PT", "CT"):
            path = write_slice(GREY, Modality=modality, **{keyword: None})
            assert refusal(path).reason == "no position, no orientation or no pixel spacing"


@pytest.mark.parametrize(
    ("elements", "geometry", "spacing"),
    [
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.4, 0.3]}, "scaled", (0.1, 0.2, 1)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.4, 0.3]}, "scaled", (0.3, 0.4, 1)),
        ({"PixelSpacing": None}, "none", (1, 1, 1)),
        ({"PixelSpacing": [0.2, 0.1], "ImagePositionPatient": [1.0, 2, 3],
          "ImageOrientationPatient": [1.0, 0, 0, 0, 1, 0]}, "scaled", (0.1, 0.2, 1)),
    ],
)  # fmt: skip
def test_a_radiograph_is_a_flat_image(write_slice, elements, geometry, spacing):
    path = write_slice(GREY, **{**XRAY, **elements})
    header = read_header(path)
    assert header.modality == "X-ray"
    assert header.slice is not None
    assert header.slice.position == ()
    volume = read_dicom(path.parent, Source("dicom", (path.name,)))
    assert (volume.geometry, volume.spacing) == (geometry, spacing)
    assert volume.voxels[0, 3, 2, 0] == GREY[2, 3]  # x along a row, y down the rows


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_values_never_reach_warnings_logs_or_reasons(write_slice, caplog):
    path = write_slice(GREY, PatientID="SECRET" * 20, Rows=5)
    everything = path.read_bytes()
    # A date that is none, and a decimal string that is none, both of which pydicom would quote.
    path.write_bytes(everything.replace(b"19700101", b"SECRETXX").replace(b"-1024.0 ", b"SECRETXX"))
    assert path.read_bytes() != everything
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = refusal(path)
    assert error.reason == "a header value that is missing or no number"
    assert "SECRET" in error.detail  # which goes to the private list alone
    assert not caught
    charset = write_slice(GREY, "charset", SpecificCharacterSet="ISO_IR 100")
    charset.write_bytes(charset.read_bytes().replace(b"ISO_IR 100", b"SECRET SET"))
    with pytest.warns(UserWarning, match="SECRET SET"):
        pydicom.dcmread(charset)  # as it would be
    assert caplog.records
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_header(charset)
    assert not caught
    assert not caplog.records


def test_settings_of_the_process_are_what_they_were_also_after_threads():
    logger = logging.getLogger("pydicom")

    def state():
        return (logger.propagate, list(logger.handlers), config.settings._reading_validation_mode, warnings.filters[:])

    before = state()

    def hold(seconds):
        with quiet():
            time.sleep(seconds)

    threads = [threading.Thread(target=hold, args=(0.01 * k,)) for k in (3, 1, 5, 2)]
    for thread in threads:
        thread.start()
    with quiet():
        assert config.settings.reading_validation_mode == config.IGNORE
    for thread in threads:
        thread.join()
    assert state() == before
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert state() == before


def test_every_reason_is_written_in_the_code():
    """No reason is put together from what a file says: each is a literal, or looked up in a table of literals."""
    for path in Path(readers.__file__).parent.glob("dicom_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused":
                reason = node.args[0]
                if isinstance(reason, ast.Call):  # a function of this package that returns literals
                    assert getattr(reason.func, "id", "") == "_irregularity"
                else:
                    named = getattr(reason, "id", "") in ("reason", "_CONTRADICTION")
                    assert named or isinstance(getattr(reason, "value", None), str), path


def test_other_files_are_refused(tmp_path, write_slice):
    path = tmp_path / "file"
    for content in (b"", b"no image", b"\0" * 200, b"\0" * 128 + b"DICM", bytes(range(256)) * 8):
        path.write_bytes(content)
        refusal(path)
    assert refusal(tmp_path / "gone").reason == "cannot be opened"
    assert refusal(tmp_path).reason.startswith("a folder")


def test_a_length_that_the_file_does_not_have_reads_no_further(write_slice):
    path = write_slice(GREY, ImageComments="x" * 10)
    content = path.read_bytes()
    at = content.index(b"x" * 10) - 8
    assert content[at + 4 : at + 6] == b"LT"
    path.write_bytes(content[: at + 4] + b"UT\0\0" + b"\xfe\xff\xff\xff" + content[at + 8 :])
    assert refusal(path).reason == "not an image (no pixels)"


def test_sequences_without_end_are_refused(write_slice):
    path = write_slice(GREY)
    content = path.read_bytes()
    meta = 144 + int.from_bytes(content[140:144], "little")
    nested = (b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 5000
    path.write_bytes(content[:meta] + nested)
    assert refusal(path).reason in ("a header nested or sized beyond reason", "a DICOM header that cannot be read")


def test_a_deflated_file_that_swells_is_not_inflated(write_slice, monkeypatch):
    monkeypatch.setattr(dicom_file, "HEADER_LIMIT", 4 << 20)
    bomb = write_slice(GREY, syntax=uid.DeflatedExplicitVRLittleEndian, EncapsulatedDocument=b"x" * (16 << 20))
    assert bomb.stat().st_size < 1 << 17
    assert refusal(bomb).reason == "a deflated file that swells beyond reason"
    plain = write_slice(GREY, "plain", EncapsulatedDocument=b"x" * (16 << 20))
    assert refusal(plain).reason == "a header nested or sized beyond reason"


def test_broken_files_of_pydicom_are_read_or_refused():
    names = ("MR_truncated.dcm", "rtplan_truncated.dcm", "no_meta.dcm", "meta_missing_tsyntax.dcm", "badVR.dcm",
             "empty_charset_LEI.dcm", "nested_priv_SQ.dcm", "UN_sequence.dcm", "ExplVR_BigEndNoMeta.dcm")  # fmt: skip
    for name in names:
        path = get_testdata_file(name, download=False)
        assert path is not None
        refusal(Path(path))


def whole(path):
    """Everything that indexing and loading do with one file."""
    header = read_header(path)
    if header.format == "dicom":
        sources, _ = assemble([(path.name, header)])
        for source in sources:
            read_dicom(path.parent, source)
    else:
        for part in range(len(header.members)):
            read_enhanced(path.parent, Source("enhanced", (path.name,), part))


@pytest.fixture(scope="module")
def seeds():
    names = ("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "CT_small.dcm",
             "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "image_dfl.dcm", "rtplan.dcm",
             "SC_rgb_small_odd_jpeg.dcm", "eCT_Supplemental.dcm")  # fmt: skip
    found = (get_testdata_file(name, download=False) for name in names)
    return [Path(path).read_bytes() for path in found if path is not None]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_are_read_or_refused(seeds, tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(seeds)))
    # Changes hit the header; one in compressed pixels can end the process, which is what worker processes are for.
    end = min(len(content), 3000)
    for _ in range(data.draw(st.integers(0, 12))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.sampled_from([0, 1, 0x41, 0x7F, 0xFE, 0xFF]))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, end - 1))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    if data.draw(st.integers(0, 3)) == 0:
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / "file"
    path.write_bytes(content)
    with suppress(Refused):
        whole(path)


def test_a_classical_header_takes_little_time(write_slice):
    path = write_slice(GREY)
    read_header(path)
    best = min(_seconds(path) for _ in range(5))
    assert best < 0.01  # about 0.5 ms alone on a core; this one is shared


def _seconds(path):
    start = time.perf_counter()
    for _ in range(5):
        read_header(path)
    return (time.perf_counter() - start) / 5


def test_pydicom_reads_what_the_helper_writes(write_slice):
    assert pydicom.dcmread(write_slice(GREY)).pixel_array[2, 3] == GREY[2, 3]
