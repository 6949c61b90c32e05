"""The reader of each layout."""

from autoft.config import (
    ArraysDataset,
    CifarCDataset,
    CifarDataset,
    CsvDataset,
    DatasetBase,
    FolderDataset,
    ImageNetCDataset,
    ImageNetDataset,
    PatchCamelyonDataset,
    TransferDataset,
    WebDataset,
    WildsDataset,
)
from autoft.data.arrays import list_arrays
from autoft.data.cifar import list_cifar, list_cifar_c
from autoft.data.folder import list_folder
from autoft.data.imagenet import list_imagenet, list_imagenet_c
from autoft.data.objectnet import list_objectnet
from autoft.data.patchcamelyon import list_patchcamelyon
from autoft.data.sets import Listing
from autoft.data.tables import list_table
from autoft.data.transfer import list_transfer
from autoft.data.webdataset import list_webdataset
from autoft.data.wilds import list_fmow, list_iwildcam


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
        case ImageNetDataset(layout="objectnet"):
            return list_objectnet(dataset, field)
        case ImageNetDataset():
            return list_imagenet(dataset, field)
        case ImageNetCDataset():
            return list_imagenet_c(dataset, field)
        case WildsDataset(layout="iwildcam"):
            return list_iwildcam(dataset, field)
        case WildsDataset():
            return list_fmow(dataset, field)
        case CifarDataset():
            return list_cifar(dataset, field)
        case CifarCDataset():
            return list_cifar_c(dataset, field)
        case PatchCamelyonDataset():
            return list_patchcamelyon(dataset, field)
        case TransferDataset():
            return list_transfer(dataset, field)
    raise AssertionError(f"no reader for {type(dataset).__name__}")
