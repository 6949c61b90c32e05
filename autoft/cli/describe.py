"""`autoft describe`: descriptions of a study's classes, from a language model or from a file that exists.

The prompt is our own: what the authors of dual risk minimisation (arXiv 2411.19757) asked GPT-4 is not published. What they kept is:
a phrase a class for ImageNet and iWildCam, six sentences a class for FMoW.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.config import load_config
from autoft.config.vocabulary import fill
from autoft.data import ClassTable, resolve_classes
from autoft.data.descriptions import class_labels, load_descriptions, load_part, normal_text, to_document
from autoft.errors import AutoFTError, ConfigError, EndpointError
from autoft.files import write_json

if TYPE_CHECKING:
    from autoft.cli.endpoint import Endpoint
    from autoft.models.load import Tokenizer

MOST_WORDS = 20  # of a sentence; fewer where the model's context is short
ATTEMPTS = 4  # answers of the model to one question, each after the first with what was wrong with the one before
OTHERS = 60  # a study with at most so many classes names the others in the prompt, to be told apart from

_TASK = """You describe one class of images for a classifier that has to recognise it in photographs, paintings, cartoons, sketches and \
renderings alike. Say what one sees of the thing itself and what stays the same in all of them: its parts and how they are arranged, its \
outline and proportions, and its surface or colours where they belong to it. Leave out the background, light, viewpoint, medium, style, \
use and habits. Answer in JSON."""


@dataclass
class Spent:
    """What the answers cost so far. Tokens stay None while the endpoint does not say."""

    answers: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count one answer."""
        self.answers += 1
        if prompt_tokens is not None:
            self.prompt_tokens = (self.prompt_tokens or 0) + prompt_tokens
        if completion_tokens is not None:
            self.completion_tokens = (self.completion_tokens or 0) + completion_tokens

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """Money, from prices per million tokens; None without prices or counts."""
        if self.prompt_tokens is None or self.completion_tokens is None or price_in is None or price_out is None:
            return None
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


@dataclass(frozen=True)
class _Job:
    """What is asked for: the classes of a study, and the limits their sentences have."""

    classes: ClassTable
    template: str
    tokenizer: "Tokenizer"
    sentences: int
    out: Path
    quiet: bool
    spent: Spent = field(default_factory=Spent)


def describe(args: argparse.Namespace) -> int:
    """Write the descriptions of a study's classes.

    Raises:
        ConfigError, DataError: the study, a flag, the key, the model's name or the given file is wrong.
        EndpointError: the language model cannot be reached, or gives no answer that can be used. Classes already written stay.
    """
    from autoft.models.lengths import check_lengths, load_tokenizer

    _check_flags(args)
    config = load_config(args.study, args.set)
    job = _Job(resolve_classes(config.data), config.data.templates[0], load_tokenizer(config.model), args.sentences or 1, args.out, args.json)
    kept: Mapping[int, Sequence[str]]
    if args.source is not None:
        given = load_descriptions(args.source, job.classes, "--from")
        check_lengths(job.tokenizer, given, job.classes.names, "--from")
        _write(job, dict(enumerate(given)), replace=False)
        kept = {}
    else:
        kept = load_part(job.out, job.classes, "--out")
        check_lengths(job.tokenizer, list(kept.values()), [job.classes.names[row] for row in kept], "--out")
        _ask_all(job, args, dict(kept))
    print(_summary(job, args, config.study, len(kept)))
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    """Raise ConfigError for flags that do not go together, and for a place that cannot be written to: before anything is paid for."""
    if args.source is not None and (args.model or args.sentences or args.price_in is not None or args.price_out is not None):
        raise ConfigError("--from takes descriptions from a file; --model, --sentences, --price-in and --price-out are for a language model")
    if (args.price_in is None) != (args.price_out is None):
        raise ConfigError("--price-in and --price-out go together: prices of a million prompt and completion tokens")
    if not args.out.absolute().parent.is_dir() or args.out.is_dir():
        raise ConfigError(f"--out = {args.out}: must be a file in a folder that exists")
    if not os.access(args.out.absolute().parent, os.W_OK):
        raise ConfigError(f"--out = {args.out}: its folder cannot be written to")


def _ask_all(job: _Job, args: argparse.Namespace, sentences: dict[int, Sequence[str]]) -> None:
    """Ask for every class that has no sentences yet; the file is written after each answer."""
    missing = [row for row in range(len(job.classes)) if row not in sentences]
    if not missing:
        return
    from autoft.cli.endpoint import Endpoint

    with Endpoint.from_environment() as endpoint:
        try:
            model = args.model or endpoint.only_model()
            for row in missing:
                sentences[row] = _ask(endpoint, model, job, row)
                _write(job, sentences, replace=True)
                if not job.quiet:
                    print(f"{len(sentences)}/{len(job.classes)} {job.classes.names[row]}: {'; '.join(sentences[row])}", flush=True)
        except AutoFTError as error:
            paid = f" ({_cost_text(job.spent, args)})" if job.spent.answers else ""
            there = f"{len(sentences)} of {len(job.classes)} classes are in {job.out}; the same command asks for the others{paid}"
            raise type(error)(f"{error}; {there}" if sentences else f"{error}{paid}") from None


def _ask(endpoint: "Endpoint", model: str, job: _Job, row: int) -> tuple[str, ...]:
    """Sentences for a class. Raises EndpointError if the model's answers stay wrong."""
    messages = _question(job, row)
    schema = _schema(job.classes.names[row])
    complaint = ""
    for _ in range(ATTEMPTS):
        answer = endpoint.ask(model, messages, schema)
        job.spent.add(answer.prompt_tokens, answer.completion_tokens)
        sentences, complaint = _read_answer(answer.text, schema, job, row)
        if not complaint:
            return sentences
        again = f"That cannot be used: {complaint}. Answer again."
        messages = [*messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": again}]
    raise EndpointError(f"model {model} gives no usable answer for class {job.classes.names[row]!r} in {ATTEMPTS} attempts: {complaint[:300]}")


def _question(job: _Job, row: int) -> list[dict[str, str]]:
    """The prompt for one class."""
    from autoft.models.lengths import context_length

    name = job.classes.names[row].replace("_", " ")
    words = max(1, min(MOST_WORDS, (context_length(job.tokenizer) - 2) // 2))
    others = [other.replace("_", " ") for other in job.classes.names if other != job.classes.names[row]]
    apart = f"It has to be told apart from: {', '.join(others)}.\n" if len(others) < OTHERS else ""
    phrases = "one short phrase" if job.sentences == 1 else f"{job.sentences} short phrases, each about other features,"
    text = (
        f"Class: {name}, as in {fill(job.template, name)!r}\n{apart}Write {phrases} of at most {words} words. Never use the name of the class ({name}) itself. "
        f'In the answer "class" is {json.dumps(job.classes.names[row], ensure_ascii=False)} and "sentences" is the list.'
    )
    return [{"role": "system", "content": _TASK}, {"role": "user", "content": text}]


def _schema(name: str) -> dict[str, Any]:
    """The answer's form. The number of sentences is checked here and not in it: endpoints differ in what they understand of arrays."""
    return {
        "type": "object",
        "properties": {"class": {"type": "string", "enum": [name]}, "sentences": {"type": "array", "items": {"type": "string"}}},
        "required": ["class", "sentences"],
        "additionalProperties": False,
    }


def _read_answer(text: str, schema: Mapping[str, Any], job: _Job, row: int) -> tuple[tuple[str, ...], str]:
    """The sentences of an answer, and what is wrong with them ("" if nothing is)."""
    import jsonschema

    try:
        value = json.loads(text)
        jsonschema.validate(value, schema)
    except (ValueError, RecursionError) as error:
        return (), f"it is not valid JSON ({error})" if text else "it is empty"
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "the answer"
        return (), f"{where}: {error.message[:200]}"
    sentences = tuple(" ".join(sentence.split()) for sentence in value["sentences"])
    return sentences, _complaint(sentences, job, row)


def _complaint(sentences: Sequence[str], job: _Job, row: int) -> str:
    from autoft.models.lengths import context_length, token_count

    name = job.classes.names[row]
    if len(sentences) != job.sentences:
        return f"there are {len(sentences)} sentences, and {job.sentences} were asked for"
    if len({normal_text(sentence) for sentence in sentences}) < len(sentences):
        return "the same sentence is there twice"
    limit = context_length(job.tokenizer)
    for sentence in sentences:
        if not sentence.isprintable() or not any(map(str.isalpha, sentence)):
            return f"{sentence!r} is no sentence"
        if mentions(sentence, name):
            return f"{sentence!r} uses the name of the class, {name!r}"
        if (count := token_count(job.tokenizer, sentence)) > limit:
            return f"{sentence!r} is too long: {count} tokens, at most {limit} are read; use fewer words"
    return ""


def mentions(sentence: str, name: str) -> bool:
    """Whether a sentence uses a class's name: as whole words, in singular or with an s; case, underscores and hyphens do not count."""
    words = re.escape(normal_text(name.replace("-", " ")))
    return re.search(rf"(?<!\w){words}(?:e?s)?(?!\w)", normal_text(sentence.replace("-", " "))) is not None


def _write(job: _Job, sentences: Mapping[int, Sequence[str]], replace: bool) -> None:
    """Write the file, whole or not at all. Raises ConfigError if it cannot be, or holds something else and is not to be replaced."""
    document = to_document(job.classes, sentences)
    try:
        if not replace and job.out.exists() and json.loads(job.out.read_text(encoding="utf-8")) != document:
            raise ConfigError(f"--out = {job.out} exists already and holds something else; give another name")
        write_json(job.out, document)
    except OSError as error:
        raise ConfigError(f"--out = {job.out}: cannot write the file: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, AutoFTError):
            raise
        raise ConfigError(f"--out = {job.out} exists already and is no JSON; give another name") from None


def _summary(job: _Job, args: argparse.Namespace, study: str, kept: int) -> str:
    labels = class_labels(job.classes)
    asked = 0 if args.source else len(labels) - kept
    spent = job.spent
    if args.json:
        facts: dict[str, Any] = {"study": study, "file": str(job.out), "classes": len(labels), "kept": kept, "asked": asked}
        tokens = {"answers": spent.answers, "prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens}
        return json.dumps({**facts, **tokens, "cost": spent.cost(args.price_in, args.price_out)}, indent=1)
    if args.source:
        return f"wrote {job.out}: {len(labels)} classes from {args.source}; nothing was asked"
    if not asked:
        return f"{job.out} has all {len(labels)} classes; nothing was asked"
    return f"wrote {job.out}: {len(labels)} classes, {asked} asked, {kept} were there; {_cost_text(spent, args)}"


def _cost_text(spent: Spent, args: argparse.Namespace) -> str:
    if spent.prompt_tokens is None or spent.completion_tokens is None:
        return f"{spent.answers} answers; the endpoint does not say how many tokens"
    money = spent.cost(args.price_in, args.price_out)
    price = f", cost {money:.4f}" if money is not None else ""
    return f"{spent.answers} answers, {spent.prompt_tokens:,} prompt and {spent.completion_tokens:,} completion tokens{price}"
