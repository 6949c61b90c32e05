"""The reader of each layout."""

from autoft.config import ArraysDataset, CsvDataset, DatasetBase, FolderDataset, WebDataset
from autoft.data.arrays import list_arrays
from autoft.data.folder import list_folder
from autoft.data.sets import Listing
from autoft.data.tables import list_table
from autoft.data.webdataset import list_webdataset


def open_listing(dataset: DatasetBase, field: str) -> Listing:
    """Find a set's examples on disk; nothing is decoded, and `slice`, `max_examples` and `balanced` are not applied.

    Args:
        field: dotted name for messages, such as data.train.

    Raises:
        DataError: naming the field and what is missing or does not fit the layout.
    """
    match dataset:
        case FolderDataset():
            return list_folder(dataset, field)
        case CsvDataset():
            return list_table(dataset, field)
        case WebDataset():
            return list_webdataset(dataset, field)
        case ArraysDataset():
            return list_arrays(dataset, field)
    raise AssertionError(f"no reader for {type(dataset).__name__}")
