"""A language model behind an OpenAI-compatible endpoint: one question, one answer in JSON, and what it cost.

Address and key come from the environment only (OPENAI_BASE_URL, OPENAI_API_KEY), and the key goes into the request's header only: texts
that come back from the endpoint are shown without it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion

from autoft.errors import AutoFTError, ConfigError, EndpointError

DEFAULT_URL = "https://api.openai.com/v1"
SECONDS = 120.0  # how long one answer may take
MAX_RETRIES = 4  # of 429, 5xx and time-outs; the client waits 0.5 s, then twice as long each time, or as long as the server says

_SHOWN_MODELS = 10


@dataclass(frozen=True)
class Answer:
    """What came back: the text, and the tokens that were paid for (None where the endpoint does not say)."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Endpoint:
    """An endpoint that speaks the chat-completions API; open until the `with` block ends."""

    def __init__(self, url: str, key: str) -> None:
        """Raises ConfigError if the address is none, or the key has characters that a header cannot hold."""
        self.host = _host(url)
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("OPENAI_API_KEY has a character that cannot be sent (a line break or one outside ASCII)")
        self._key = key
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=SECONDS, max_retries=MAX_RETRIES)

    @classmethod
    def from_environment(cls) -> Self:
        """The endpoint the environment names. Raises ConfigError if there is no key or the address is none."""
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key:
            raise ConfigError(
                "OPENAI_API_KEY is not set: the key of the endpoint (OPENAI_BASE_URL, by default OpenAI's); where none is needed, any word does"
            )
        return cls(os.environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_URL, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def only_model(self) -> str:
        """The endpoint's model where it has a single one, as a server of one's own often does. Raises ConfigError otherwise."""
        with self._translated("--model"):
            models = sorted(model.id for model in self._client.models.list())
        if len(models) == 1:
            return models[0]
        shown = ", ".join(models[:_SHOWN_MODELS]) + (f" and {len(models) - _SHOWN_MODELS} more" if len(models) > _SHOWN_MODELS else "")
        raise ConfigError(f"--model is missing; the models at {self.host} are {shown or 'not listed'}")

    def ask(self, model: str, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any]) -> Answer:
        """The model's answer to a conversation; the endpoint is asked to keep to the JSON schema, and it may not.

        Raises:
            ConfigError: the endpoint does not know the key or the model.
            EndpointError: it cannot be reached, fails or refuses after `MAX_RETRIES` retries, or is no chat-completions API.
        """
        wanted = {"type": "json_schema", "json_schema": {"name": "description", "strict": True, "schema": dict(schema)}}
        with self._translated(f"--model {model}"):
            completion = self._client.chat.completions.create(model=model, messages=list(messages), response_format=wanted)  # type: ignore[call-overload]
        if not isinstance(completion, ChatCompletion) or not isinstance(completion.choices, list):
            raise EndpointError(f"what {self.host} answers is no chat completion; does OPENAI_BASE_URL have its path (/v1, as a rule)?")
        message = completion.choices[0].message if completion.choices else None
        usage = completion.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        return Answer((message and message.content) or "", *tokens)

    @contextmanager
    def _translated(self, asked: str) -> Iterator[None]:
        """The client's errors become ours, in one line and without the key."""
        try:
            yield
        except openai.OpenAIError as error:
            raise self._explain(error, asked) from None
        except ValueError as error:  # an answer that says it is JSON and is not
            raise EndpointError(f"what {self.host} answers cannot be read: {self._text(str(error))}") from None

    def _explain(self, error: openai.OpenAIError, asked: str) -> AutoFTError:
        match error:
            case openai.APITimeoutError():
                return EndpointError(f"{self.host} did not answer within {SECONDS:g} s, {MAX_RETRIES + 1} times in a row")
            case openai.APIConnectionError():
                return EndpointError(f"{self.host} cannot be reached: {self._text(str(error.__cause__ or error))}; set OPENAI_BASE_URL to change it")
            case openai.AuthenticationError() | openai.PermissionDeniedError():  # whose text may repeat the key
                return ConfigError(f"{self.host} refuses the key in OPENAI_API_KEY ({error.status_code})")
            case openai.NotFoundError() if "model" in str(error.body).lower():
                return ConfigError(f"{asked}: there is no such model at {self.host}: {self._said(error)}")
            case openai.NotFoundError():
                return ConfigError(f"OPENAI_BASE_URL: there is no chat-completions API at {self.host} (404); does its path end in /v1?")
            case openai.RateLimitError():
                return EndpointError(f"{self.host} allows no more requests now (429, {MAX_RETRIES} retries): {self._said(error)}")
            case openai.APIStatusError():
                return EndpointError(f"{asked}: {self.host} answered {error.status_code}: {self._said(error)}")
            case _:
                return EndpointError(f"{self.host}: {self._text(str(error))}")

    def _said(self, error: openai.APIStatusError) -> str:
        body = error.body
        said = body.get("message") if isinstance(body, Mapping) else None
        return self._text(str(said or body or error))

    def _text(self, text: str) -> str:
        """A foreign text in one line, cut, without the key."""
        return " ".join(text.replace(self._key, "***").split())[:300]


def _host(url: str) -> str:
    """Host and port of an address, as it may be shown: without a user and password. Raises ConfigError if it is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("OPENAI_BASE_URL is no address; it looks like http://127.0.0.1:8000/v1")
    return f"{host}:{port}" if port else host
