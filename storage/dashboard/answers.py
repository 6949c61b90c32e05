"""Answers of our own, and what every answer carries so that a browser makes nothing else of it than what it is."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:12vh auto;max-width:24rem;padding:0 1rem;color:#1a1a1a;background:#fff}"
    "label{display:block;margin:1rem 0}input{box-sizing:border-box;width:100%;padding:.5rem;font:inherit;border:1px solid #767676;border-radius:4px}"
    "button{padding:.5rem 1.5rem;font:inherit}.wrong{color:#a40000}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#1a1a1a}input{color:inherit;background:#2a2a2a}.wrong{color:#ff9d9d}}"
)
_STYLE_HASH = base64.b64encode(sha256(_STYLE.encode()).digest()).decode()

_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
POLICIES: Mapping[str, str] = {
    "page": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    # What optuna-dashboard's page needs; its authors ask for unsafe-eval because parallel coordinates, drawn by WebGL, make functions from text.
    "shell": "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "artifact": f"sandbox; {_NOTHING}",
    "data": _NOTHING,
}

_EVERYWHERE = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)
_DROPPED = {name.lower() for name, _ in _EVERYWHERE} | {"content-security-policy", "server", "x-powered-by", "set-cookie2"}

# Kinds a browser shows as pictures, sound, film or text and never runs; everything else is bytes.
_HARMLESS = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "text/csv", "text/plain", "application/json"}
    | {"audio/mpeg", "audio/ogg", "audio/wav", "video/mp4", "video/webm"}
)


@dataclass
class Answer:
    """A WSGI answer."""

    status: str
    headers: list[tuple[str, str]]
    body: Iterable[bytes]
    policy: str = field(default="data")

    @property
    def code(self) -> int:
        return int(self.status[:3])

    @property
    def content_type(self) -> str:
        return next((value for name, value in self.headers if name.lower() == "content-type"), "")

    def close(self) -> None:
        """Give back what the body holds, where it is not sent."""
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def guarded_headers(answer: Answer, *, stored: bool) -> list[tuple[str, str]]:
    """An answer's headers with ours in the place of any that would weaken them.

    Args:
        stored: a browser may keep the answer, if it asks each time whether it still holds.
    """
    kept = [(name, value) for name, value in answer.headers if name.lower() not in _DROPPED and not name.lower().startswith("access-control-")]
    kept = [(name, value) for name, value in kept if name.lower() != "cache-control"]
    cache = ("Cache-Control", "private, no-cache" if stored else "no-store")
    return [*kept, *_EVERYWHERE, ("Content-Security-Policy", POLICIES[answer.policy]), cache]


def as_download(answer: Answer) -> None:
    """Make a file that somebody uploaded one that a browser saves, and never runs, whatever it was said to be."""
    kind = answer.content_type.partition(";")[0].strip().lower()
    kind = kind if kind in _HARMLESS else "application/octet-stream"
    dropped = ("content-type", "content-disposition", "content-encodings")
    answer.headers = [(name, value) for name, value in answer.headers if name.lower() not in dropped]
    answer.headers += [("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind), ("Content-Disposition", "attachment")]
    answer.policy = "artifact"


def text(status: HTTPStatus, message: str, *headers: tuple[str, str]) -> Answer:
    """One line of plain text."""
    return _answer(status, "text/plain; charset=utf-8", f"{message}\n", "data", *headers)


def refusal(status: HTTPStatus, reason: str, *headers: tuple[str, str]) -> Answer:
    """JSON that says why, in the form in which optuna-dashboard shows a reason."""
    return _answer(status, "application/json", json.dumps({"reason": reason}), "data", *headers)


def redirect(where: str, *headers: tuple[str, str]) -> Answer:
    return _answer(HTTPStatus.SEE_OTHER, "text/plain; charset=utf-8", "", "data", ("Location", where), *headers)


def page(status: HTTPStatus, title: str, content: str, *headers: tuple[str, str], then: str | None = None) -> Answer:
    """A small page; `content` is HTML, and `then` says when and where the browser goes on, as a `refresh` does: `5` or `0;url=/`."""
    move = f'<meta http-equiv="refresh" content="{html.escape(then)}">' if then else ""
    document = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>{move}'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{content}</body></html>"
    )
    return _answer(status, "text/html; charset=utf-8", document, "page", *headers)


def sign_in_page(status: HTTPStatus, *, token: bool, password: bool, goes_to: str, said: str = "", headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """The form; where neither a token nor a password opens the door, what does."""
    fields = f'<input type="hidden" name="next" value="{html.escape(goes_to)}">'
    if password:
        fields += '<label>User <input name="user" autocomplete="username"></label>'
        fields += '<label>Password <input name="password" type="password" autocomplete="current-password"></label>'
    if token:
        fields += f'<label>{"or token" if password else "Token"} <input name="token" type="password" autocomplete="off"></label>'
    form = f'<form method="post" action="/sign-in">{fields}<button>Sign in</button></form>'
    wrong = f'<p class="wrong" role="alert">{html.escape(said)}</p>' if said else ""
    return page(status, "AutoFT dashboard", wrong + (form if token or password else "<p>Sign in at the proxy of this dashboard.</p>"), *headers)


def _answer(status: HTTPStatus, kind: str, body: str, policy: str, *headers: tuple[str, str]) -> Answer:
    data = body.encode()
    return Answer(f"{status.value} {status.phrase}", [("Content-Type", kind), ("Content-Length", str(len(data))), *headers], [data], policy)
