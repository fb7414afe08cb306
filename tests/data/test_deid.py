"""The table of identifying attributes, and what of it a header carries."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dpeq.data.deid import IDENTIFYING_TAGS, KINDS, PRIVATE, policy_rows, present

UIDS = "UIDs"


def test_the_table_is_that_of_the_standard():
    """621 rows in edition 2024b; four of them, for curves, overlays and private attributes, have no keyword."""
    assert len(IDENTIFYING_TAGS) == len(KINDS) == 621 - 4
    by_vr = Counter(dictionary_VR(tag) for tag in IDENTIFYING_TAGS)
    assert (by_vr["PN"], by_vr["DA"], by_vr["TM"], by_vr["DT"], by_vr["UI"]) == (29, 55, 53, 57, 56)
    assert {dictionary_VR(tag) for tag, word in IDENTIFYING_TAGS.items() if KINDS[word] == UIDS} == {"UI"}


def test_what_everyone_knows_to_identify_is_in_the_table():
    words = """
        PatientName PatientID PatientBirthDate PatientSex PatientAge AccessionNumber InstitutionName StationName
        ReferringPhysicianName OperatorsName DeviceSerialNumber StudyDate SeriesTime StudyInstanceUID PatientComments
        ImageComments OtherPatientIDs PatientAddress PatientTelephoneNumbers RequestingPhysician ProtocolName
        StudyDescription RequestAttributesSequence EncapsulatedDocument
    """
    assert [word for word in words.split() if IDENTIFYING_TAGS.get(tag_for_keyword(word)) != word] == []


def test_what_an_image_needs_is_not():
    for keyword in ("Rows", "PixelData", "Modality", "PixelSpacing", "ImagePositionPatient", "RescaleSlope"):
        assert keyword not in KINDS


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_only_what_is_present_and_not_empty_is_named_and_private_groups_once(syntax):
    data = Dataset()
    data.PatientName, data.PatientID, data.AccessionNumber, data.StudyDate = "Doe^Jane", "", "  ", "20200101"
    data.Modality, data.PatientWeight = "CT", 70
    data.OtherPatientIDsSequence = []
    data.RequestAttributesSequence = [Dataset()]
    data.add_new(0x00091001, "LO", "secret")
    data.add_new(0x00111001, "LO", "secret too")
    data.add_new(0x60020010, "US", 3)
    data.add_new(0x60023000, "OW", b"\1\2")
    data.add_new(0x50040010, "US", 3)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.file_meta.TransferSyntaxUID = syntax
    expected = (
        "MediaStorageSOPInstanceUID", "StudyDate", PRIVATE, "PatientName", "PatientWeight", "RequestAttributesSequence",
        "curve data", "overlay data",
    )  # fmt: skip
    assert present(data) == expected
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    assert present(dcmread(stream)) == expected


_WORDS = sorted(
    entry[4] for tag, entry in DicomDictionary.items() if entry[0] in ("PN", "LO", "SH", "LT", "AE") and tag >> 16 > 8
)


@given(st.dictionaries(st.sampled_from(_WORDS), st.sampled_from(["", "20200101", " "]), max_size=12))
def test_undecoded_elements_are_told_apart_as_decoded_ones_are(values):
    data = Dataset()
    for word, value in values.items():
        setattr(data, word, value)
    stream = io.BytesIO()
    data.save_as(stream, implicit_vr=True, little_endian=True)
    stream.seek(0)
    read = dcmread(stream, force=True)
    found = present(read)
    expected = {word for word in values if word in KINDS and str(read[word].value or "").strip()}
    assert set(found) == expected


def test_rows_of_the_report_are_by_kind_and_by_frequency():
    rows = policy_rows(
        {"StudyInstanceUID": 9, "PatientID": 9, "PatientName": 3, "StudyDate": 5, PRIVATE: 2, "PatientSex": 3}
    )
    assert [name for _, name, _ in rows] == [
        "PatientID", "PatientName", "PatientSex", "StudyDate", "StudyInstanceUID", PRIVATE,
    ]  # fmt: skip
    assert rows[0] == ("the patient", "PatientID", 9)
    assert rows[-1] == ("other", PRIVATE, 2)
