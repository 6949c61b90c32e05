"""Data sets on disk to decoded images in a shared cache. `autoft.data.transforms` holds what needs torch."""

from autoft.data.classes import resolve_classes
from autoft.data.layouts import open_listing
from autoft.data.pixels import read_image
from autoft.data.sets import ClassTable, ImageSet, Listing, PixelSpec, Split, StudyData
from autoft.data.study import SetPlan, check_study_data, load_image_set, load_study_data, plan_study_data

__all__ = [
    "ClassTable",
    "ImageSet",
    "Listing",
    "PixelSpec",
    "SetPlan",
    "Split",
    "StudyData",
    "check_study_data",
    "load_image_set",
    "load_study_data",
    "open_listing",
    "plan_study_data",
    "read_image",
    "resolve_classes",
]
