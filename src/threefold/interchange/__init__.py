"""Results as other programs take them: DICOM segmentations and reports, and a PACS over DICOMweb."""
