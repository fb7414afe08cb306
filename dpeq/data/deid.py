"""Which identifying attributes a DICOM header carries: the table of PS3.15 Annex E, and counts of what was met.

The table is E.1-1, "Application Level Confidentiality Profile Attributes", of edition 2024b: every attribute on which
the basic profile acts. Only counts of attributes ever leave this module's callers, never a value.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

__all__ = ["EDITION", "IDENTIFYING_TAGS", "KINDS", "PRIVATE", "policy_rows", "present"]

EDITION = "DICOM PS3.15 2024b, Table E.1-1"
PRIVATE = "private elements"
_REPEATING = {0x6000_3000: "overlay data", 0x6000_4000: "overlay comments"}  # groups 6000, 6002, ... 60FE
_CURVES = "curve data"  # every element of the groups 5000, 5002, ... 50FE

_TABLE = {
    "the patient": """
        AdditionalPatientHistory Allergies BranchOfService ConfidentialityConstraintOnPatientDataDescription
        CountryOfResidence EthnicGroup InsurancePlanIdentification IssuerOfPatientID LastMenstrualDate
        MedicalAlerts MedicalRecordLocator MilitaryRank Occupation OtherPatientIDs OtherPatientIDsSequence
        OtherPatientNames PatientAddress PatientAge PatientBirthName PatientID PatientInsurancePlanCodeSequence
        PatientMotherBirthName PatientName PatientPrimaryLanguageCodeSequence
        PatientPrimaryLanguageModifierCodeSequence PatientReligiousPreference PatientSex PatientSexNeutered
        PatientSize PatientState PatientTelecomInformation PatientTelephoneNumbers PatientWeight PreMedication
        PregnancyStatus ReferencedPatientAliasSequence ReferencedPatientPhotoSequence ReferencedPatientSequence
        RegionOfResidence ResponsibleOrganization ResponsiblePerson SmokingStatus SpecialNeeds
    """,
    "staff and other persons": """
        ActualHumanPerformersSequence AuthorObserverSequence CameraOwnerName CertificateOfSigner
        ConsultingPhysicianIdentificationSequence ConsultingPhysicianName
        ContentCreatorIdentificationCodeSequence ContentCreatorName CurrentObserverTrial DistributionName
        HumanPerformerName HumanPerformerOrganization IntendedRecipientsOfResultsIdentificationSequence
        InterpretationApproverSequence InterpretationAuthor InterpretationRecorder InterpretationTranscriber
        NameOfPhysiciansReadingStudy NamesOfIntendedRecipientsOfResults OperatorIdentificationSequence
        OperatorsName OrderCallbackPhoneNumber OrderCallbackTelecomInformation OrderEnteredBy
        ParticipantSequence PerformingPhysicianIdentificationSequence PerformingPhysicianName PersonAddress
        PersonIdentificationCodeSequence PersonName PersonTelecomInformation PersonTelephoneNumbers
        PhysicianApprovingInterpretation PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence
        PhysiciansReadingStudyIdentificationSequence ROICreatorSequence ROIInterpreter ROIInterpreterSequence
        ReferringPhysicianAddress ReferringPhysicianIdentificationSequence ReferringPhysicianName
        ReferringPhysicianTelephoneNumbers RequestingPhysician ResultsDistributionListSequence ReviewerName
        ScheduledHumanPerformersSequence ScheduledPerformingPhysicianIdentificationSequence
        ScheduledPerformingPhysicianName SelectorPNValue TelephoneNumberTrial
        VerbalSourceIdentifierCodeSequenceTrial VerbalSourceTrial VerifyingObserverIdentificationCodeSequence
        VerifyingObserverName VerifyingObserverSequence VerifyingOrganization
    """,
    "numbers of visits, orders and trials": """
        AccessionNumber AdmissionID BarcodeValue ClinicalTrialProtocolID ClinicalTrialProtocolName
        ClinicalTrialSeriesID ClinicalTrialSubjectID ClinicalTrialSubjectReadingID ClinicalTrialTimePointID
        ContainerComponentID ContainerIdentifier FillerOrderNumberImagingServiceRequest InterpretationID
        InterpretationIDIssuer IssuerOfAdmissionID IssuerOfAdmissionIDSequence IssuerOfClinicalTrialProtocolID
        IssuerOfClinicalTrialSeriesID IssuerOfClinicalTrialSubjectID IssuerOfClinicalTrialSubjectReadingID
        IssuerOfClinicalTrialTimePointID IssuerOfServiceEpisodeID IssuerOfServiceEpisodeIDSequence
        IssuerOfTheContainerIdentifierSequence IssuerOfTheSpecimenIdentifierSequence
        OtherClinicalTrialProtocolIDsSequence PerformedProcedureStepID PlacerOrderNumberImagingServiceRequest
        RequestedProcedureID ResultsID ResultsIDIssuer ScheduledProcedureStepID ServiceEpisodeID SlideIdentifier
        SpecimenAccessionNumber SpecimenIdentifier StudyID StudyIDIssuer
    """,
    "dates and times": """
        AcquisitionDate AcquisitionDateTime AcquisitionTime AdmittingDate AdmittingTime ApprovalStatusDateTime
        AssertionDateTime AssertionExpirationDateTime AttributeModificationDateTime BeamHoldTransitionDateTime
        CalibrationDate CalibrationDateTime CalibrationTime CertifiedTimestamp ContentDate ContentTime
        ContextGroupLocalVersion ContextGroupVersion ContrastBolusStartTime ContrastBolusStopTime
        ContributionDateTime CreationDate CreationTime CurveDate CurveTime Date
        DateOfDocumentOrVerbalTransactionTrial DateOfInstallation DateOfLastCalibration
        DateOfLastDetectorCalibration DateOfManufacture DateOfSecondaryCapture DateTime
        DateTimeOfLastCalibration DecayCorrectionDateTime DigitalSignatureDateTime DischargeDate DischargeTime
        EffectiveDateTime EndAcquisitionDateTime EthicsCommitteeApprovalEffectivenessEndDate
        EthicsCommitteeApprovalEffectivenessStartDate ExclusionStartDateTime ExpectedCompletionDateTime
        FindingsGroupRecordingDateTrial FindingsGroupRecordingTimeTrial FirstTreatmentDate
        FrameAcquisitionDateTime FrameOriginTimestamp FrameReferenceDateTime FunctionalSyncPulse GPSDateStamp
        GPSTimeStamp HL7DocumentEffectiveTime HangingProtocolCreationDateTime ImpedanceMeasurementDateTime
        InformationIssueDateTime InstanceCoercionDateTime InstanceCreationDate InstanceCreationTime
        InstructionPerformedDateTime IntendedFractionStartTime IntendedPhaseEndDate IntendedPhaseStartDate
        InterlockDateTime InterpretationApprovalDate InterpretationApprovalTime InterpretationRecordedDate
        InterpretationRecordedTime InterpretationTranscriptionDate InterpretationTranscriptionTime
        InterventionDrugStartTime InterventionDrugStopTime IssueDateOfImagingServiceRequest
        IssueTimeOfImagingServiceRequest ModifiedImageDate ModifiedImageTime MostRecentTreatmentDate
        ObservationDateTime ObservationDateTrial ObservationStartDateTime ObservationTimeTrial OverlayDate
        OverlayTime OverrideDateTime ParticipationDateTime PatientBirthDate PatientBirthTime
        PerformedProcedureStepEndDate PerformedProcedureStepEndDateTime PerformedProcedureStepEndTime
        PerformedProcedureStepStartDate PerformedProcedureStepStartDateTime PerformedProcedureStepStartTime
        PresentationCreationDate PresentationCreationTime ProcedureStepCancellationDateTime
        ProductExpirationDateTime ROIDateTime ROIObservationDateTime RTPlanDate RTPlanTime
        RadiopharmaceuticalStartDateTime RadiopharmaceuticalStartTime RadiopharmaceuticalStopDateTime
        RadiopharmaceuticalStopTime RecordedRTControlPointDateTime ReferencedDateTime ReviewDate ReviewTime
        SOPAuthorizationDateTime SafePositionExitDate SafePositionExitTime SafePositionReturnDate
        SafePositionReturnTime ScheduledAdmissionDate ScheduledAdmissionTime ScheduledDischargeDate
        ScheduledDischargeTime ScheduledProcedureStepEndDate ScheduledProcedureStepEndTime
        ScheduledProcedureStepExpirationDateTime ScheduledProcedureStepModificationDateTime
        ScheduledProcedureStepStartDate ScheduledProcedureStepStartDateTime ScheduledProcedureStepStartTime
        ScheduledStudyStartDate ScheduledStudyStartTime ScheduledStudyStopDate ScheduledStudyStopTime
        SelectorDAValue SelectorDTValue SelectorTMValue SeriesDate SeriesTime SourceEndDateTime
        SourceStartDateTime SourceStrengthReferenceDate SourceStrengthReferenceTime StartAcquisitionDateTime
        StructureSetDate StructureSetTime StudyArrivalDate StudyArrivalTime StudyCompletionDate
        StudyCompletionTime StudyDate StudyReadDate StudyReadTime StudyTime StudyVerifiedDate StudyVerifiedTime
        SubstanceAdministrationDateTime TemplateLocalVersion TemplateVersion Time
        TimeOfDocumentCreationOrVerbalTransactionTrial TimeOfLastCalibration TimeOfLastDetectorCalibration
        TimeOfSecondaryCapture TimezoneOffsetFromUTC TreatmentControlPointDate TreatmentControlPointTime
        TreatmentDate TreatmentTime TreatmentToleranceViolationDateTime VerificationDateTime
    """,
    "institutions and places": """
        AddressTrial ClinicalTrialCoordinatingCenterName ClinicalTrialProtocolEthicsCommitteeApprovalNumber
        ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialSiteID ClinicalTrialSiteName
        ClinicalTrialSponsorName CurrentPatientLocation CustodialOrganizationSequence DistributionAddress
        GPSAltitude GPSAltitudeRef GPSAreaInformation GPSDOP GPSDestBearing GPSDestBearingRef GPSDestDistance
        GPSDestDistanceRef GPSDestLatitude GPSDestLatitudeRef GPSDestLongitude GPSDestLongitudeRef
        GPSDifferential GPSImgDirection GPSImgDirectionRef GPSLatitude GPSLatitudeRef GPSLongitude
        GPSLongitudeRef GPSMapDatum GPSMeasureMode GPSProcessingMethod GPSSatellites GPSSpeed GPSSpeedRef
        GPSStatus GPSTrack GPSTrackRef GPSVersionID InstitutionAddress InstitutionCodeSequence InstitutionName
        InstitutionalDepartmentName InstitutionalDepartmentTypeCodeSequence IssuerOfClinicalTrialSiteID
        OrderEntererLocation PatientInstitutionResidence PatientTransportArrangements PerformedLocation
        PerformedStationGeographicLocationCodeSequence RequestedProcedureLocation RequestingService
        ScheduledPatientInstitutionResidence ScheduledProcedureStepLocation
        ScheduledStationGeographicLocationCodeSequence ScheduledStudyLocation ScheduledStudyLocationAETitle
    """,
    "devices and stations": """
        CassetteID DestinationAE DetectorID DeviceAlternateIdentifier DeviceLabel DeviceSerialNumber GantryID
        GeneratorID InstanceOriginStatus LensMake LensModel LensSerialNumber LensSpecification MakerNote
        ManufacturerDeviceIdentifier ModifyingDeviceID ModifyingSystem NetworkID Originator
        PerformedStationAETitle PerformedStationName PerformedStationNameCodeSequence PlateID
        RTAccessoryDeviceSlotID RTAccessoryHolderSlotID ReceivingAE RequestingAE RetrieveAETitle
        ScheduledStationAETitle ScheduledStationName ScheduledStationNameCodeSequence SelectorAEValue
        SourceIdentifier SourceManufacturer SourceSerialNumber StationAETitle StationName
        TransducerIdentificationSequence TreatmentMachineName UDISequence UniqueDeviceIdentifier XRayDetectorID
        XRayDetectorLabel XRaySourceID
    """,
    "free text and labels": """
        AcquisitionComments AcquisitionDeviceProcessingDescription AcquisitionFieldOfViewLabel
        AcquisitionProtocolDescription AdmittingDiagnosesDescription AnnotationGroupDescription
        AnnotationGroupLabel Arbitrary BeamDescription BolusDescription ClinicalTrialSeriesDescription
        ClinicalTrialTimePointDescription CommentsOnRadiationDose CommentsOnThePerformedProcedureStep
        CompensatorDescription ConceptualVolumeCombinationDescription ConceptualVolumeDescription
        ContainerDescription ContrastBolusAgent ContributionDescription DecompositionDescription
        DerivationDescription DeviceDescription DeviceSettingDescription DischargeDiagnosisDescription
        DisplacementReferenceLabel DoseReferenceDescription EntityDescription EntityLabel EntityLongLabel
        EntityName EquipmentFrameOfReferenceDescription FilterLookupTableDescription FixationDeviceDescription
        FractionGroupDescription FractionationNotes FrameComments IdentifyingComments ImageComments
        ImagePresentationComments ImagingServiceRequestComments Impressions InterlockDescription
        InterlockOriginDescription InterpretationDiagnosisDescription InterpretationText LabelText
        LongDeviceDescription ModifiedImageDescription MultienergyAcquisitionDescription PatientComments
        PatientSetupPhotoDescription PatientTreatmentPreparationMethodDescription
        PatientTreatmentPreparationProcedureParameterDescription PerformedProcedureStepDescription
        PositionAcquisitionTemplateDescription PositionAcquisitionTemplateName PrescriptionDescription
        PrescriptionNotes PriorTreatmentDoseDescription ProtocolName PyramidDescription PyramidLabel
        ROIDescription ROIGenerationDescription ROIName ROIObservationDescription ROIObservationLabel
        RTPhysicianIntentNarrative RTPlanDescription RTPlanLabel RTPlanName RTPrescriptionLabel
        RTToleranceSetLabel RTTreatmentApproachLabel RadiationDoseIdentificationLabel
        RadiationDoseInVivoMeasurementLabel RadiationGenerationModeDescription RadiationGenerationModeLabel
        ReasonForOmissionDescription ReasonForStudy ReasonForSuperseding ReasonForTheImagingServiceRequest
        ReasonForTheRequestedProcedure ReasonForVisit RequestedContrastAgent RequestedProcedureComments
        RequestedProcedureDescription RequestedSeriesDescription
        RespiratoryMotionCompensationTechniqueDescription ResultsComments ScheduledProcedureStepDescription
        SelectorLOValue SelectorLTValue SelectorSHValue SelectorSTValue SelectorURValue SelectorUTValue
        SeriesDescription ServiceEpisodeDescription SetupTechniqueDescription ShieldingDeviceDescription
        SourceOfPreviousValues SpecimenDetailedDescription SpecimenShortDescription StructureSetDescription
        StructureSetLabel StructureSetName StudyComments StudyDescription TextComments TextString TopicAuthor
        TopicKeywords TopicSubject TopicTitle TreatmentPositionGroupLabel TreatmentSite TreatmentSites
        TreatmentTechniqueNotes TreatmentToleranceViolationDescription UserContentLabel UserContentLongLabel
        VisitComments WaveformFilterDescription
    """,
    "contents that may carry any of these": """
        AcquisitionContextSequence AdmittingDiagnosesCodeSequence ContentSequence DataSetTrailingPadding
        DigitalSignaturesSequence EncapsulatedDocument FlowIdentifier FlowIdentifierSequence
        GraphicAnnotationSequence IconImageSequence MAC ModifiedAttributesSequence NonconformingDataElementValue
        NonconformingModifiedAttributesSequence OriginalAttributesSequence PrescriptionNotesSequence
        ReasonForRequestedProcedureCodeSequence ReasonForTheAttributeModification ReasonForVisitCodeSequence
        ReferencedDigitalSignatureSequence ReferencedImageSequence ReferencedPerformedProcedureStepSequence
        ReferencedSOPInstanceMACSequence ReferencedStudySequence RequestAttributesSequence SelectorASValue
        SelectorOBValue SelectorUNValue SourceImageSequence SpecimenPreparationSequence
    """,
    "UIDs": """
        AcquisitionUID AffectedSOPInstanceUID AnnotationGroupUID ConcatenationUID ConceptualVolumeUID
        ConstituentConceptualVolumeUID DeviceUID DigitalSignatureUID DimensionOrganizationUID DoseReferenceUID
        DosimetricObjectiveUID FailedSOPInstanceUIDList FiducialUID FrameOfReferenceUID InstanceCreatorUID
        IrradiationEventUID LargePaletteColorLookupTableUID ManufacturerDeviceClassUID
        MediaStorageSOPInstanceUID MultiplexGroupUID ObservationSubjectUIDTrial ObservationUID
        PaletteColorLookupTableUID PatientSetupUID PresentationDisplayCollectionUID
        PresentationSequenceCollectionUID PyramidUID RTTreatmentPhaseUID ReferencedConceptualVolumeUID
        ReferencedDoseReferenceUID ReferencedDosimetricObjectiveUID ReferencedFiducialsUID
        ReferencedFrameOfReferenceUID ReferencedGeneralPurposeScheduledProcedureStepTransactionUID
        ReferencedObservationUIDTrial ReferencedSOPInstanceUID ReferencedSOPInstanceUIDInFile
        ReferencedTreatmentPositionGroupUID RelatedFrameOfReferenceUID RequestedSOPInstanceUID SOPInstanceUID
        SeriesInstanceUID SourceConceptualVolumeUID SourceFrameOfReferenceUID SpecimenUID StorageMediaFileSetUID
        StudyInstanceUID SynchronizationFrameOfReferenceUID TargetUID TemplateExtensionCreatorUID
        TemplateExtensionOrganizationUID TrackingUID TransactionUID TreatmentPositionGroupUID
        TreatmentSessionUID UID
    """,
}

KINDS: dict[str, str] = {keyword: kind for kind, words in _TABLE.items() for keyword in words.split()}
"""The kind of each attribute of the table, by keyword."""

IDENTIFYING_TAGS: dict[int, str] = {tag: keyword for keyword in KINDS if (tag := tag_for_keyword(keyword)) is not None}
"""Keyword of each attribute of the table, by tag; repeating groups (curves, overlays) and private ones are no part."""


def present(dataset: Dataset) -> tuple[str, ...]:
    """Keywords of the identifying attributes that are present and not empty, in the order of their tags.

    Looks at the top level and the file's meta information, and decodes no value. All private attributes together are
    one entry, :data:`PRIVATE`; so are curves, overlays and comments on overlays.
    """
    found = {}
    for part in (getattr(dataset, "file_meta", None) or Dataset(), dataset):
        for tag in part.keys():  # noqa: SIM118  # iterating over a dataset itself decodes its elements
            name = _name(int(tag))
            if name is not None and name not in found and not _empty(part.get_item(tag)):
                found[name] = int(tag)
    return tuple(sorted(found, key=lambda name: found[name]))


def _name(tag: int) -> str | None:
    group = tag >> 16
    if group & 1:
        return PRIVATE
    if group >> 8 == 0x50:
        return _CURVES
    if group >> 8 == 0x60:
        return _REPEATING.get(tag & 0xFF00_FFFF)
    return IDENTIFYING_TAGS.get(tag)


def _empty(element: object) -> bool:
    """Of a raw element too, whose value is bytes; one that was left in the file (None, of some length) is not empty."""
    value = getattr(element, "value", None)
    if isinstance(value, bytes):
        return not value.strip(b" \0")
    if isinstance(value, str):
        return not value.strip()
    if value is None:
        return not getattr(element, "length", 0)
    try:
        return len(value) == 0
    except TypeError:
        return False


def policy_rows(counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """``(kind, attribute, files)`` for a report, kinds in the order of the table, the commonest attribute first.

    Args:
        counts: in how many files each entry of :func:`present` was met.
    """
    kinds = [*_TABLE]
    last = len(kinds)

    def rank(row: tuple[str, str, int]) -> tuple[int, int, str]:
        kind, name, files = row
        return kinds.index(kind) if kind in kinds else last, -files, name

    return sorted(((KINDS.get(name, "other"), name, files) for name, files in counts.items()), key=rank)
