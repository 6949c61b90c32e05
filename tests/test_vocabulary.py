"""The built-in class names and templates, against the sources they are from."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
from torchvision.datasets import Flowers102

from autoft.config import parse_config
from autoft.config.vocabulary import VOCABULARIES, class_names, fill, folder_names, is_template, templates
from autoft.errors import ConfigError

COUNTS = {
    "imagenet": (1000, 80), "imagenet_simple": (1000, 7), "iwildcam": (182, 2), "fmow": (62, 16), "cifar10": (10, 1), "sst2": (2, 1),
    "patchcamelyon": (2, 1), "caltech101": (101, 34), "stanford_cars": (None, 8), "flowers102": (102, 1),
}  # fmt: skip
# Names of the lists in FLYP's repository.
FLYP = {
    "caltech101": "caltech101_template", "cifar10": "simple_template", "flowers102": "flowers102_template", "imagenet": "openai_imagenet_template",
    "iwildcam": "iwildcam_template", "patchcamelyon": "patchcamelyon_template", "sst2": "sst2_template", "stanford_cars": "stanfordcars_template",
}  # fmt: skip


def document(**data: object) -> dict[str, object]:
    train = {"layout": "folder", "path": "x"}
    return {
        "study": "s", "model": {"name": "m"}, "search_space": {"base_lr": 1e-4}, "search": {"n_trials": 1}, "trial": {"steps": 1},
        "data": {"train": train, "val_id": train, "val_ood": train, **data},
    }  # fmt: skip


def test_every_vocabulary_has_the_published_number_of_names_and_templates() -> None:
    found = {name: (len(class_names(name)) if about.has_names else None, len(templates(name))) for name, about in VOCABULARIES.items()}
    assert found == COUNTS
    assert all(about.source for about in VOCABULARIES.values())


@pytest.mark.parametrize("name", COUNTS)
def test_the_study_file_expands_names(name: str, tmp_path: Path) -> None:
    has_names = VOCABULARIES[name].has_names
    data = parse_config(document(templates=name, **({"classnames": name} if has_names else {})), base=tmp_path).data
    assert data.templates == templates(name)
    assert data.classnames == (class_names(name) if has_names else None)
    assert all(word == " ".join(word.split()) != "" for word in (*data.templates, *(data.classnames or ())))


def test_names_that_are_not_built_in_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.templates = 'imagnet': must be a list of templates or one of imagenet, .*stanford_cars"):
        parse_config(document(templates="imagnet"), base=tmp_path)
    with pytest.raises(ConfigError, match=r"data\.classnames = 'stanford_cars': .*no class names: leave classnames out"):
        parse_config(document(classnames="stanford_cars"), base=tmp_path)
    assert parse_config(document(classnames="names.txt"), base=tmp_path).data.classnames == tmp_path / "names.txt"


def test_names_differ_within_a_set() -> None:
    """Two classes of one name would be one to the text tower. iWildCam has such species: 182 classes, 178 names."""
    for name, about in VOCABULARIES.items():
        if about.has_names:
            assert len(set(class_names(name))) == {"iwildcam": 178, "imagenet": 998, "imagenet_simple": 998}.get(name, len(class_names(name)))


def test_imagenet_is_open_clips() -> None:
    assert class_names("imagenet") == class_names("imagenet_simple") == tuple(open_clip.IMAGENET_CLASSNAMES)
    for name, published in (("imagenet", open_clip.OPENAI_IMAGENET_TEMPLATES), ("imagenet_simple", open_clip.SIMPLE_IMAGENET_TEMPLATES)):
        assert [template.replace("{}", "cat") for template in templates(name)] == [template("cat") for template in published]


def test_flowers_are_in_torchvisions_label_order() -> None:
    """torchvision took its list from elsewhere: three classes are called otherwise there, none is in another place."""
    differing = {ours: theirs for ours, theirs in zip(class_names("flowers102"), Flowers102.classes, strict=True) if ours != theirs}
    assert differing == {"globe flower": "globe-flower", "pink and yellow dahlia": "pink-yellow dahlia?", "air plant": "ball moss"}


def test_caltechs_folders_are_in_sorted_order_like_its_names() -> None:
    """CLIP's list follows the sorted folders, so each name belongs to the folder in its place."""
    folders = list(folder_names("caltech101"))
    assert folders == sorted(folders)
    assert "BACKGROUND_Google" not in folders
    renamed = {folder: name for folder, name in folder_names("caltech101").items() if folder.replace("_", " ") != name}
    assert renamed == {
        "Faces": "off-center face", "Faces_easy": "centered face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane",
        "car_side": "side of a car", "cougar_body": "body of a cougar cat", "cougar_face": "face of a cougar cat",
        "crocodile_head": "head of a crocodile", "flamingo_head": "head of a flamingo", "snoopy": "snoopy (cartoon beagle)",
        "yin_yang": "yin and yang symbol",
    }  # fmt: skip


def test_wilds_names_are_those_of_its_metadata(shared: Path) -> None:
    metadata = shared / "data" / "metadata"
    with (metadata / "iwildcam_labels.csv").open(newline="") as file:
        species = {int(row["y"]): row["english"].lower() for row in csv.DictReader(file) if int(row["y"]) < 182}
    assert class_names("iwildcam") == tuple(species[y] for y in range(182))
    assert list(class_names("fmow")) == json.loads((metadata / "fmow_classes.json").read_text())


def test_templates_are_flyps(shared: Path) -> None:
    published = json.loads((shared / "data" / "metadata" / "prompt_templates.json").read_text())
    for name, list_name in FLYP.items():
        assert [template.replace("{}", "{c}") for template in templates(name)] == published[list_name], name
    fmow = [text.replace("{append_proper_article(c)}", "{an}") for text in published["fmow_template"]]
    assert [template.replace("{}", "{c}") for template in templates("fmow")] == fmow


def test_a_prompt_has_the_name_as_it_is_or_in_words_with_its_article() -> None:
    assert fill("aerial photo of a {}.", "airport_hangar") == "aerial photo of a airport_hangar."
    assert fill("aerial photo of {an}.", "airport_hangar") == "aerial photo of an airport hangar."
    assert fill("aerial photo of {an}.", "barn") == "aerial photo of a barn."
    assert is_template("{an}") and is_template("a {}.") and not any(map(is_template, ("", "a", "{} {}", "{} {an}", "{a} {}")))


def test_reading_a_study_file_does_not_import_torch() -> None:
    code = "import sys, autoft.config; assert not {'torch', 'open_clip'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
