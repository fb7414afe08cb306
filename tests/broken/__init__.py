"""Inputs that are broken, odd or none of ours, each with what must become of every file: one function per kind."""

from broken import arrays, dicom, nifti, objects, pictures, places, series
from broken.case import ACCEPTED, CASES, Case

__all__ = ["ACCEPTED", "CASES", "Case", "arrays", "dicom", "nifti", "objects", "pictures", "places", "series"]
