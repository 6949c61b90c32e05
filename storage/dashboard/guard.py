"""What stands between the network and optuna-dashboard: every request is judged here, and every answer leaves through here.

Order: the host's name, the path, who it is, what it wants to do. Whatever fails, a visitor reads one plain line.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote

from storage.dashboard.answers import Answer, as_download, guarded_headers, page, redirect, refusal, sign_in_page, text
from storage.dashboard.hosts import Hosts, same_origin
from storage.dashboard.options import DashboardOptions
from storage.dashboard.outages import Outages
from storage.dashboard.sign_in import SignIn, TooManyFailures

logger = logging.getLogger(__name__)

_READS = ("GET", "HEAD", "OPTIONS")
_PATH = re.compile(r"/[A-Za-z0-9_./-]{0,500}")
_PAGE = re.compile(r"/dashboard(?:/[A-Za-z0-9_/-]{0,200})?(?:\?[A-Za-z0-9_=&,.%+-]{0,500})?")
_NEVER = ("/incompatible-rdb-schema", "/api/llm")
_LARGEST_FORM = 4096
_AWAY = "the database cannot be reached just now; this recovers by itself when it is back"


class Guard:
    """A WSGI application around optuna-dashboard's."""

    def __init__(self, application: Any, hosts: Hosts, sign_in: SignIn | None, outages: Outages, options: DashboardOptions) -> None:
        self._application, self._hosts, self._sign_in, self._outages = application, hosts, sign_in, outages
        self._allow_edit, self._log = options.allow_edit, options.access_log

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = str(environ.get("PATH_INFO", ""))
        try:
            answer = self._answer(environ, path)
        except Exception:
            logger.exception("the dashboard failed to answer %s %s", environ.get("REQUEST_METHOD"), quote(path[:200]))
            answer = text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error of the dashboard; its own terminal says more")
        if self._log is not None:
            who = (self._sign_in and self._sign_in.user(environ)) or "-"
            self._log(f"{environ.get('REMOTE_ADDR')} {quote(who)} {environ.get('REQUEST_METHOD')} {quote(path[:200])} {answer.code}")
        stored = answer.code in (200, 304) and path.startswith("/static/")
        start_response(answer.status, guarded_headers(answer, stored=stored))
        return answer.body

    def _answer(self, environ: dict[str, Any], path: str) -> Answer:
        refused = self._wrong_place(environ, path) or self._stranger(environ, path) or self._unwanted(environ, path)
        return refused or self._shown(environ, path)

    # --- requests ------------------------------------------------------------------------------------------------------------------

    def _wrong_place(self, environ: dict[str, Any], path: str) -> Answer | None:
        """Refuse names that are not ours, and paths that no page or program of ours asks for."""
        if not self._hosts.allows(environ.get("HTTP_HOST")):
            return text(HTTPStatus.MISDIRECTED_REQUEST, "this dashboard does not go by that name; `autoft dashboard --allowed-host NAME` adds one")
        if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
            return text(HTTPStatus.NOT_FOUND, "not found")
        if path.startswith(_NEVER):
            return refusal(HTTPStatus.FORBIDDEN, "refused: visitors neither migrate the database nor ask language models")
        return text(HTTPStatus.OK, "ok") if path == "/health" else None

    def _stranger(self, environ: dict[str, Any], path: str) -> Answer | None:
        """Let nobody in who has not signed in; take sign-ins."""
        if self._sign_in is None:
            return None
        method, wants_page = environ["REQUEST_METHOD"], path == "/" or _PAGE.fullmatch(path) is not None
        if path == "/sign-in" and method == "POST":
            return self._take_form(environ)
        if path == "/signed-in":  # a page of ours sends on to the next: after a link from elsewhere, a redirect alone would carry no strict cookie
            return page(HTTPStatus.OK, "Signed in", '<p><a href="/dashboard">Go on</a></p>', then=f"0;url={_next(_query(environ).get('next'))}")
        if path == "/sign-out":
            self._sign_in.end(environ)
            return self._form(HTTPStatus.OK, "/dashboard", "Signed out.", ("Set-Cookie", self._sign_in.cookie(environ, "")))
        if wants_page and method == "GET" and "token" in (query := _query(environ)):
            return self._enter(environ, _next(path), lambda sign_in: sign_in.with_token(environ, query["token"]))
        if self._sign_in.user(environ) is not None:
            return redirect("/dashboard") if path == "/sign-in" else None
        if path == "/sign-in" or (wants_page and method in ("GET", "HEAD")):
            return self._form(HTTPStatus.OK if path == "/sign-in" else HTTPStatus.UNAUTHORIZED, _next(path))
        return refusal(HTTPStatus.UNAUTHORIZED, "sign in first")

    def _take_form(self, environ: dict[str, Any]) -> Answer:
        if self._is_foreign(environ) or environ.get("CONTENT_TYPE", "").partition(";")[0] != "application/x-www-form-urlencoded":
            return refusal(HTTPStatus.FORBIDDEN, "refused: sign in with the form of this dashboard")
        length = str(environ.get("CONTENT_LENGTH") or "0")
        if not length.isdecimal() or int(length) > _LARGEST_FORM:
            return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "refused: the form is too large")
        given = dict(parse_qsl(environ["wsgi.input"].read(int(length)).decode("utf-8", "replace")))
        if given.get("token"):
            return self._enter(environ, _next(given.get("next")), lambda sign_in: sign_in.with_token(environ, given["token"].strip()))
        user, password = given.get("user", ""), given.get("password", "")
        return self._enter(environ, _next(given.get("next")), lambda sign_in: sign_in.with_password(environ, user, password))

    def _enter(self, environ: dict[str, Any], goes_to: str, try_it: Callable[[SignIn], str | None]) -> Answer:
        assert self._sign_in is not None
        try:
            session = try_it(self._sign_in)
        except TooManyFailures as error:
            said = f"Too many failed sign-ins. Try again in {error.seconds} s."
            return self._form(HTTPStatus.TOO_MANY_REQUESTS, goes_to, said, ("Retry-After", str(error.seconds)))
        if session is None:
            return self._form(HTTPStatus.UNAUTHORIZED, goes_to, "That is not right.")
        return redirect(f"/signed-in?next={quote(goes_to, safe='/')}", ("Set-Cookie", self._sign_in.cookie(environ, session)))

    def _form(self, status: HTTPStatus, goes_to: str, said: str = "", *headers: tuple[str, str]) -> Answer:
        assert self._sign_in is not None
        takes = {"token": self._sign_in.takes_token, "password": self._sign_in.takes_password}
        return sign_in_page(status, **takes, goes_to=goes_to, said=said, headers=headers)

    def _unwanted(self, environ: dict[str, Any], path: str) -> Answer | None:
        """Refuse to write where that is not allowed, or where another site may have asked for it."""
        if environ["REQUEST_METHOD"] in _READS:
            return None
        if not self._allow_edit:
            return refusal(HTTPStatus.FORBIDDEN, "refused: this dashboard is read-only; `autoft dashboard --allow-edit` serves one that can write")
        if self._is_foreign(environ):
            return refusal(HTTPStatus.FORBIDDEN, "refused: the request comes from another site")
        kind = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
        has_body = str(environ.get("CONTENT_LENGTH") or "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ
        if has_body and kind != "application/json":
            return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "refused: the body must be application/json")
        return None

    def _is_foreign(self, environ: dict[str, Any]) -> bool:
        """Whether a browser says that another site's page sends this request; programs other than browsers say nothing."""
        origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
        return (origin is not None and not same_origin(origin, environ.get("HTTP_HOST"))) or site not in (None, "same-origin")

    # --- answers -------------------------------------------------------------------------------------------------------------------

    def _shown(self, environ: dict[str, Any], path: str) -> Answer:
        """What optuna-dashboard answers, made harmless."""
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # optuna-dashboard fails without
        environ["wsgi.errors"] = complaints = io.StringIO()  # where its framework prints tracebacks
        self._outages.begin()
        answer = self._call(environ)
        wants_page = _PAGE.fullmatch(path) is not None
        if answer.code >= 500:
            answer.close()
            return self._failed(wants_page, complaints.getvalue())
        if path.startswith("/api/"):
            self._outages.tell(False)
        if path.startswith("/artifacts/") and answer.code == HTTPStatus.OK:
            as_download(answer)
        elif answer.code >= 400 and not answer.content_type.startswith("application/json"):
            answer.close()
            status = HTTPStatus(answer.code)
            return text(status, status.phrase.lower())
        elif wants_page and answer.code == HTTPStatus.OK:
            answer.policy = "shell"
        return answer

    def _failed(self, wants_page: bool, complaints: str) -> Answer:
        if not self._outages.happened:
            if complaints.strip():
                logger.error("dashboard: %r", complaints.strip().splitlines()[-1][:500])
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error of the dashboard; its own terminal says more")
        self._outages.tell(True)
        if wants_page:
            return page(HTTPStatus.SERVICE_UNAVAILABLE, "AutoFT dashboard", f"<p>{_AWAY.capitalize()}.</p>", ("Retry-After", "5"), then="5")
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, _AWAY, ("Retry-After", "5"))

    def _call(self, environ: dict[str, Any]) -> Answer:
        said: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            said[:] = [status, headers]

        body = self._application(environ, start_response)
        return Answer(said[0], list(said[1]), body)


def _query(environ: dict[str, Any]) -> dict[str, str]:
    try:
        return dict(parse_qsl(str(environ.get("QUERY_STRING", ""))[:2000], max_num_fields=20))
    except ValueError:  # more fields than any page of ours has
        return {}


def _next(where: str | None) -> str:
    """A page of this dashboard to go on to, and never another site."""
    return where if where is not None and _PAGE.fullmatch(where) else "/dashboard"
