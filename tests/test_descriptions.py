"""Descriptions of classes: to their class by key whatever the order, complaints that say what to change, and nothing cut in silence."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import open_clip
import pytest
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer

from autoft.config import ModelConfig, load_config
from autoft.config.vocabulary import class_names
from autoft.data import ClassTable, resolve_classes
from autoft.data.descriptions import class_labels, load_descriptions, load_part, to_document
from autoft.errors import DataError, ModelError
from autoft.models.lengths import check_lengths, context_length, load_tokenizer, token_count
from tests.studies import write_study

ROOT = Path(__file__).parents[1]
PETS = ClassTable(("tabby_cat", "Guide dog", "horse"), ("tabby cat", "guide dog", "horse"))
GOOD = {"tabby_cat": "striped fur", "Guide dog": ["a harness", "a snout"], "horse": " a  long\nface "}


def write(folder: Path, content: Any) -> Path:
    path = folder / "descriptions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def numbered(vocabulary: str) -> ClassTable:
    """The class table of a study whose labels are numbers and whose names are built in."""
    names = class_names(vocabulary)
    return ClassTable(tuple(map(str, range(len(names)))), names, ordered=True)


def raw(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def shuffled(document: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    keys = list(document)
    random.Random(seed).shuffle(keys)
    assert keys != list(document)
    return {key: document[key] for key in keys}


def as_tuple(value: Any) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in ([value] if isinstance(value, str) else value))


def test_sentences_go_to_classes_by_key(tmp_path: Path) -> None:
    wanted = (("striped fur",), ("a harness", "a snout"), ("a long face",))
    assert load_descriptions(write(tmp_path, GOOD), PETS) == wanted
    assert load_descriptions(write(tmp_path, dict(reversed(GOOD.items()))), PETS) == wanted
    by_name = {"HORSE": "a long face", "guide_dog": ["a harness", "a snout"], "Tabby  cat": "striped fur"}
    assert load_descriptions(write(tmp_path, by_name), PETS) == wanted


def test_an_exact_key_comes_before_one_that_differs_in_case(tmp_path: Path) -> None:
    table = ClassTable(("Dog", "dog"), ("Dog", "dog"))
    assert load_descriptions(write(tmp_path, {"dog": "b", "Dog": "a"}), table) == (("a",), ("b",))
    assert class_labels(table) == ("Dog", "dog")


def test_a_key_comes_before_a_name_and_a_position(tmp_path: Path) -> None:
    table = ClassTable(("1", "0"), ("0", "1"), ordered=True)
    assert load_descriptions(write(tmp_path, {"0": "zero", "1": "one"}), table) == (("one",), ("zero",))
    named = ClassTable(("ant", "bee"), ("ant", "bee"), ordered=True)
    assert load_descriptions(write(tmp_path, {"1": "b", "0": "a"}), named) == (("a",), ("b",))
    with pytest.raises(DataError, match="no description of 2"):
        load_descriptions(write(tmp_path, {"1": "b", "0": "a"}), ClassTable(("ant", "bee"), ("ant", "bee")))


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_published_file_of_iwildcam(shuffle: bool, shared: Path, tmp_path: Path) -> None:
    document = raw(shared / "data/metadata/drm_iwildcam_cd.json")
    found = load_descriptions(write(tmp_path, shuffled(document) if shuffle else document), numbered("iwildcam"))
    assert found == tuple(as_tuple(document[str(row)]) for row in range(182))


def test_iwildcam_by_scientific_and_by_english_name(shared: Path, tmp_path: Path) -> None:
    import csv

    with (shared / "data/metadata/iwildcam_labels.csv").open(encoding="utf-8") as file:
        labels = [row for row in csv.DictReader(file) if int(row["y"]) < 182]
    english = {row["english"].lower(): f"seen of {row['english'].lower()}" for row in reversed(labels)}
    assert len(english) == 178, "four names are shared by two classes each"
    found = load_descriptions(write(tmp_path, english), numbered("iwildcam"))
    assert found == tuple((f"seen of {row['english'].lower()}",) for row in labels)
    scientific = {row["name"]: f"seen of {row['name']}" for row in reversed(labels)}
    assert len(scientific) == 181, "two classes share one name"
    found = load_descriptions(write(tmp_path, scientific), numbered("iwildcam"))
    assert found == tuple((f"seen of {row['name']}",) for row in labels)


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_published_file_of_fmow(shuffle: bool, shared: Path, tmp_path: Path) -> None:
    document = raw(shared / "data/metadata/drm_fmow_cd.json")
    names = tuple(json.loads((shared / "data/metadata/fmow_classes.json").read_text(encoding="utf-8")))
    path = write(tmp_path, shuffled(document) if shuffle else document)
    wanted = tuple(as_tuple(document[name]) for name in names)
    assert {len(texts) for texts in wanted} == {6}
    assert load_descriptions(path, ClassTable(names, class_names("fmow"), ordered=True)) == wanted
    assert load_descriptions(path, ClassTable(names, tuple(name.replace("_", " ") for name in names))) == wanted


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_published_file_of_imagenet(shuffle: bool, shared: Path, tmp_path: Path) -> None:
    """In the file's own order all 1000 are right too, and its two other names go to the classes that open_clip calls alike."""
    document = raw(shared / "data/metadata/drm_imagenet_cd.json")
    document = {key: f"{text} ({position})" for position, (key, text) in enumerate(document.items())}  # two of them are the same
    table = numbered("imagenet")
    found = load_descriptions(write(tmp_path, shuffled(document) if shuffle else document), table)
    assert found == tuple(as_tuple(text) for text in document.values())
    assert [table.names[row] for row in (657, 744, 836, 837)] == ["missile", "missile", "sunglasses", "sunglasses"]


def test_a_name_that_classes_share_describes_those_without_a_key_of_their_own(tmp_path: Path) -> None:
    table = ClassTable(("0", "1", "2"), ("crane", "crane", "owl"), ordered=True)
    assert class_labels(table) == ("0", "1", "owl")
    assert load_descriptions(write(tmp_path, {"crane": "long", "owl": "round"}), table) == (("long",), ("long",), ("round",))
    assert load_descriptions(write(tmp_path, {"crane": "steel", "owl": "round", "0": "feathers"}), table)[:2] == (("feathers",), ("steel",))
    with pytest.raises(DataError, match="'crane' both describe class crane"):
        load_descriptions(write(tmp_path, {"crane": "x", "owl": "round", "0": "feathers", "1": "steel"}), table)


def test_extra_keys_are_ignored_with_a_count_once_every_class_has_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="autoft"):
        assert len(load_descriptions(write(tmp_path, {**GOOD, "cow": 3, "hen": ""}), PETS)) == 3
    (record,) = caplog.records
    assert record.getMessage() == "data.descriptions: 2 descriptions are of no class of this study and are not used: 'cow', 'hen'"


MISTAKES: dict[str, tuple[Any, list[str]]] = {
    "missing": (
        {"tabby cat": "a", "guide dog": "b"},
        ["no description of 1 of the study's 3 classes: horse; the key of a description is the class's key or name"],
    ),
    "misspelt": (
        {"tabby cat": "a", "guide dog": "b", "hores": "c"},
        ["no description of 1", "horse (is 'hores' meant?)", "no class of the study: 'hores' (nearest: 'horse')", "valid are 'tabby cat', "],
    ),
    "twice in other words": ({**GOOD, "Horse": "x"}, ["'horse' and 'Horse' both describe class horse; keep one"]),
    "twice as JSON": ('{"horse": "a", "horse": "b"}', ["the key 'horse' is there twice"]),
    "empty sentence": ({**GOOD, "horse": " "}, ["'horse' is empty"]),
    "empty in a list": ({**GOOD, "horse": ["a", ""]}, ["'horse', sentence 2 of 2, is empty"]),
    "empty list": ({**GOOD, "horse": []}, ["'horse' has an empty list"]),
    "number": ({**GOOD, "horse": 3}, ["'horse' must be a sentence or a list of sentences; it is a number"]),
    "null": ({**GOOD, "horse": None}, ["it is null"]),
    "bool in a list": ({**GOOD, "horse": ["a", True]}, ["'horse', sentence 2 of 2, must be text; it is true or false"]),
    "object": ({**GOOD, "horse": {"a": "b"}}, ["it is an object"]),
    "same sentence": ({**GOOD, "horse": ["A mane", "a  mane"]}, ["'horse', sentence 2 of 2, says the same as an earlier one: 'a mane'"]),
    "surrogate": ('{"tabby cat": "a", "guide dog": "b", "horse": "\\ud800"}', ["'horse' has half of a surrogate pair"]),
    "list": (["a"], ["must be a JSON object, {class: sentence or list of sentences}; it is a list"]),
    "not JSON": ('{"horse"', ["not valid JSON"]),
    "too deep": ("[" * 100_000, ["not valid JSON"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case: str, tmp_path: Path) -> None:
    content, parts = MISTAKES[case]
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        load_descriptions(path, PETS)
    message = str(caught.value)
    assert message.startswith(f"data.descriptions = {path}: ")
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.descriptions = .*none\.json: cannot read the file: No such file"):
        load_descriptions(tmp_path / "none.json", PETS)
    assert load_part(tmp_path / "none.json", PETS, "--out") == {}


def test_an_unfinished_file_may_lack_classes_but_not_have_others(tmp_path: Path) -> None:
    assert load_part(write(tmp_path, {"horse": "a", "tabby_cat": "b"}), PETS, "--out") == {0: ("b",), 2: ("a",)}
    with pytest.raises(DataError, match=r"--out = .*no class of the study: 'cow'"):
        load_part(write(tmp_path, {**GOOD, "cow": "a"}), PETS, "--out")


@pytest.mark.parametrize("vocabulary", ["imagenet", "iwildcam", "fmow"])
def test_what_is_written_is_read_back(vocabulary: str, tmp_path: Path) -> None:
    table = numbered(vocabulary)
    sentences = tuple((f"first of {row}", f"second of {row}") for row in range(len(table)))
    document = to_document(table, dict(enumerate(sentences)))
    assert len(document) == len(table)
    assert load_descriptions(write(tmp_path, shuffled(document)), table) == sentences


def test_the_field_is_a_path_relative_to_the_study_file(tmp_path: Path, tiny_vit: Path) -> None:
    study = write_study(tmp_path, tiny_vit, data__descriptions="words/pets.json")
    assert load_config(study).data.descriptions == (tmp_path / "words/pets.json").resolve()
    assert load_config(study, ["data.descriptions=null"]).data.descriptions is None


@pytest.mark.parametrize("name", ["pacs", "digits"])
def test_the_example_studies_have_descriptions(name: str, shared: Path) -> None:
    from autoft.cli.describe import mentions

    config = load_config(shared / f"examples/{name}.yaml")
    classes = resolve_classes(config.data)
    path = ROOT / f"docs/results/descriptions/{name}.json"
    found = load_descriptions(path, classes)
    check_lengths(load_tokenizer(config.model), found, classes.names)
    assert {len(texts) for texts in found} == {2}
    assert [(other, text) for texts in found for text in texts for other in classes.names if mentions(text, other)] == []
    assert raw(path) == to_document(classes, dict(enumerate(found))), "in the form that `autoft describe` writes"


# Lengths


def test_a_sentence_that_does_not_fit_is_an_error_and_one_that_just_fits_is_not() -> None:
    tokenizer = SimpleTokenizer(context_length=8)
    fits, cut = "a b c d e f", "a b c d e f g"
    assert (token_count(tokenizer, fits), token_count(tokenizer, cut)) == (8, 9)
    check_lengths(tokenizer, [["a"], [fits]], ["cat", "dog"])
    with pytest.raises(DataError) as caught:
        check_lengths(tokenizer, [["a"], [fits, cut]], ["cat", "dog"])
    assert str(caught.value) == (
        "data.descriptions: 1 of 3 sentences do not fit into the model's context of 8 tokens (start and end counted) and would be cut: "
        "dog: 'a b c d e f g' has 9"
    )
    assert tokenizer([cut])[0].tolist() == [tokenizer.sot_token_id, *tokenizer.encode(fits)[:6], tokenizer.eot_token_id], "cut in silence"


def test_counts_are_those_of_a_context_in_which_everything_fits(shared: Path) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    texts = [text for value in raw(shared / "data/metadata/drm_fmow_cd.json").values() for text in value]
    padded = SimpleTokenizer(context_length=512)(texts)
    assert [token_count(tokenizer, text) for text in texts] == (padded != 0).sum(dim=1).tolist()
    check_lengths(tokenizer, [texts], ["all"])
    joined = " ".join(texts[:6])
    assert context_length(tokenizer) == 77
    with pytest.raises(DataError, match=r"context of 77 tokens .* all: 'Long, straight"):
        check_lengths(tokenizer, [[joined]], ["all"])


class _Words:
    """What a Hugging Face tokenizer does, on words: start and end added unless told otherwise, cut only where told."""

    def __call__(self, text: str, add_special_tokens: bool = True, truncation: bool = False) -> Any:
        assert not truncation
        ids = list(range(len(text.split())))
        return type("Encoding", (), {"input_ids": [-1, *ids, -2] if add_special_tokens else ids})


@pytest.mark.parametrize(("kind", "mode", "length"), [(HFTokenizer, "", 5), (HFTokenizer, "clips", 6), (SigLipTokenizer, "", 4)])
def test_tokens_of_other_tokenizers_are_counted_with_their_own(kind: type, mode: str, length: int) -> None:
    """SigLIP's drops punctuation; the "clips" mode adds start, end and class."""
    tokenizer = kind.__new__(kind)
    tokenizer.tokenizer, tokenizer.tokenizer_mode, tokenizer.clean_fn, tokenizer.context_length = _Words(), mode, str.strip, 5
    assert token_count(tokenizer, " one - three ") == length
    assert context_length(tokenizer) == 5


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="tokens of a function cannot be counted"):
        token_count(lambda texts: texts, "a")  # type: ignore[arg-type,return-value]


def test_a_models_tokenizer_needs_no_weights(tiny_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny_vit / "open_clip_config.json").read_bytes())
    assert context_length(load_tokenizer(ModelConfig(name=f"local-dir:{tmp_path}"))) == 8
    for name in ("local-dir:/nowhere", "ViT-B-17"):
        with pytest.raises(ModelError, match=f"model.name = '{name}'"):
            load_tokenizer(ModelConfig(name=name))
