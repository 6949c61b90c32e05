"""Signing in: a token or a password is exchanged for a session; a trusted proxy's word needs none. Wrong guesses are counted."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from storage.dashboard.options import DashboardOptions
from storage.dashboard.passwords import check_password
from storage.dashboard.peers import Peers

logger = logging.getLogger(__name__)

SESSION_SECONDS = 7 * 24 * 3600
_MOST_SESSIONS = 1000
_MOST_VISITORS = 10_000
_FAILURES, _FAILURE_SECONDS = 5, 60.0


class TooManyFailures(Exception):
    """This address has guessed wrong too often of late; the attribute says for how many seconds nothing more is tried."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class SignIn:
    """The sessions of one dashboard, in memory: they end with it. Safe to use from many threads."""

    def __init__(self, options: DashboardOptions, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.takes_token, self.takes_password = options.token is not None, bool(options.users)
        self.cookie_name = f"autoft_dashboard_{port}"  # cookies know hosts, not ports: two dashboards on a machine would sign each other out
        self._token, self._users = options.token, dict(options.users)
        self._peers, self._clock, self._lock = Peers(options.proxies, options.proxy_header), clock, threading.Lock()
        self._sessions: dict[bytes, tuple[str, float]] = {}  # by hash, in the order in which they end
        self._failures: dict[str, deque[float]] = {}

    def user(self, environ: Mapping[str, Any]) -> str | None:
        """Who has signed in, or None."""
        return self._peers.user(environ) or self._session_user(self._cookie(environ))

    def with_token(self, environ: Mapping[str, Any], token: str) -> str | None:
        """A new session for the right token, None for a wrong one. Raises TooManyFailures."""
        wanted = self._token
        right = wanted is not None and hmac.compare_digest(sha256(token.encode()).digest(), sha256(wanted.encode()).digest())
        return self._judged(environ, "token", lambda: right)

    def with_password(self, environ: Mapping[str, Any], user: str, password: str) -> str | None:
        """A new session for the right password, None for a wrong one. Raises TooManyFailures."""
        return self._judged(environ, user, lambda: bool(self._users) and check_password(self._users, user, password))

    def end(self, environ: Mapping[str, Any]) -> None:
        """Sign out."""
        with self._lock:
            self._sessions.pop(_key(self._cookie(environ)), None)

    def cookie(self, environ: Mapping[str, Any], session: str) -> str:
        """The Set-Cookie header that hands a session over; an empty session takes it back."""
        secure = "; Secure" if self._peers.is_encrypted(environ) else ""
        lasting = SESSION_SECONDS if session else 0
        return f"{self.cookie_name}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={lasting}{secure}"

    def _judged(self, environ: Mapping[str, Any], user: str, is_right: Callable[[], bool]) -> str | None:
        visitor = self._peers.visitor(environ)
        self._count(visitor)  # before it is judged, so that guesses made at the same moment do not slip through
        if not is_right():
            return None
        with self._lock:
            self._failures.pop(visitor, None)
            session = secrets.token_urlsafe(32)
            self._sessions[_key(session)] = user, self._clock() + SESSION_SECONDS
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            return session

    def _count(self, visitor: str) -> None:
        now = self._clock()
        with self._lock:
            recent = self._failures.setdefault(visitor, deque())
            while recent and recent[0] <= now - _FAILURE_SECONDS:
                recent.popleft()
            if len(recent) >= _FAILURES:
                raise TooManyFailures(max(1, round(recent[0] + _FAILURE_SECONDS - now)))
            recent.append(now)
            if len(recent) == _FAILURES:
                logger.warning("the dashboard refuses sign-ins from %s for a minute: %d wrong ones", visitor, _FAILURES)
            if len(self._failures) > _MOST_VISITORS:
                self._failures.pop(next(iter(self._failures)))

    def _session_user(self, session: str) -> str | None:
        now = self._clock()
        with self._lock:
            user, end = self._sessions.get(_key(session), (None, 0.0))
            return user if user is not None and now < end else None

    def _cookie(self, environ: Mapping[str, Any]) -> str:
        """The session a browser sends; cookies of other programs on this host may look like anything."""
        pairs = (part.strip().partition("=") for part in str(environ.get("HTTP_COOKIE", "")).split(";"))
        return next((value for name, _, value in pairs if name == self.cookie_name), "")


def _key(session: str) -> bytes:
    """What a session is kept under: what is in memory does not open the door, and looking it up tells nothing by its time."""
    return sha256(session.encode()).digest()
