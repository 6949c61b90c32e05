"""Run folders copied to where they outlive the machine: any folder or object store that fsspec can open by URL.

    STORE/RUN/...             the files of the run folder, each under its final name only once it is whole and verified
    STORE/RUN/manifest.json   written last: every file with its size and sha256; while it is absent the copy is not complete
    STORE/RUN/.partial/       files on their way

A file is written under a name of its own in `.partial`, read back, compared by sha256, and only then moved to its final name (in a local
folder: flushed to disk and renamed). Copying again sends what is missing or differs. Credentials in a URL go to the driver and nowhere else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.utils import get_protocol

from autoft.errors import ArtifactError, ConfigError
from autoft.file_hashes import BLOCK_BYTES, FileHash, hash_stream

MANIFEST = "manifest.json"
PARTIAL = ".partial"
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs")  # they have no folders; "making" one may make a bucket
_VALID = "valid are a folder, file:///FOLDER, s3://BUCKET/PREFIX (with the package s3fs) and what else fsspec can write to"


@dataclass(frozen=True)
class Uploaded:
    """What one upload did. url: of the copy, without credentials; sent, kept: files that were copied, and that were there already."""

    url: str
    sent: int
    kept: int
    bytes: int


class ArtifactStore:
    """A folder or object store. `repr` and `safe` show no credentials.

    Raises:
        ConfigError: the URL is not one, or its driver is missing; `source` is the flag it came from.
    """

    def __init__(self, url: str, source: str = "--artifacts") -> None:
        self.safe = safe_url(url)
        self._secrets = _secrets_of(url)
        protocol = get_protocol(url)
        self.is_local, self._has_folders = protocol in ("file", "local"), protocol not in _OBJECT_STORES
        if not url.strip() or "::" in url or (self.is_local and "://" in url and not url.startswith(f"{protocol}:///")):
            raise ConfigError(f"{source} {self.safe or '(empty)'}: {_VALID}")
        try:
            self._files, self._root = fsspec.core.url_to_fs(_absolute(url) if self.is_local else url, use_listings_cache=False)
        except ImportError as error:
            package = _DRIVERS.get(protocol) or error.name
            needs = f"the package {package}, which is not installed: pip install {package}" if package else self._hide(error)
            raise ConfigError(f"{source} {self.safe}: {protocol}:// needs {needs}") from None
        except Exception as error:  # whatever a driver makes of a URL it cannot use
            raise ConfigError(f"{source} {self.safe}: {self._hide(error)}; {_VALID}") from None
        self._root = self._root.rstrip("/")
        if self.is_local:
            self.safe = self._root

    def __repr__(self) -> str:
        return f"ArtifactStore({self.safe!r})"

    def url_of(self, run: str, file: str = "") -> str:
        """Where a run's copy, or a file of it, is; without credentials."""
        return "/".join(part for part in (self.safe.rstrip("/"), run, file) if part)

    def check_writable(self) -> None:
        """Write a small file and remove it. Raises ArtifactError."""
        probe = self._path(f".autoft-probe-{secrets.token_hex(8)}")
        with self._errors("cannot be written"):
            self._make_folder(self._root)
            self._files.pipe_file(probe, b"autoft")
            self._files.rm_file(probe)

    def check_owner(self, run: str, owner: str) -> None:
        """See that the place of `run` is free for this `owner`, the study's fingerprint. Raises ArtifactError if it is another's."""
        self._check_owner(run, owner, self._manifest(run))

    def upload(self, folder: Path, owner: str, hashes: Mapping[str, FileHash], observe: Callable[[str], None] = lambda file: None) -> Uploaded:
        """Copy a run folder; what is there already and is the same is left alone.

        Args:
            hashes: the files to copy, by path within the folder: `hash_files`.
            observe: called with each file's path before it is copied.

        Raises:
            ArtifactError: it could not be done; calling again goes on. Nothing half-written stands under a final name.
        """
        run, before = folder.name, self._manifest(folder.name)
        self._check_owner(run, owner, before)
        known = before.get("files", {})
        missing = [file for file, found in hashes.items() if not self._has(f"{run}/{file}", found, known.get(file))]
        manifest = {"version": 1, "owner": owner, "files": {file: asdict(found) for file, found in hashes.items()}}
        if before and (missing or before != manifest):
            with self._errors("cannot be written"):
                self._files.rm_file(self._path(run, MANIFEST))
        for file in missing:
            observe(file)
            with self._errors(f"{file} was not copied"), (folder / file).open("rb") as source:
                self._put(run, file, source, hashes[file])
        if missing or before != manifest:
            self._put_manifest(run, manifest)
        with self._errors("leftovers of earlier copies could not be removed"):
            if self._files.exists(self._path(run, PARTIAL)):
                self._files.rm(self._path(run, PARTIAL), recursive=True)
        return Uploaded(self.url_of(run), len(missing), len(hashes) - len(missing), sum(hashes[file].bytes for file in missing))

    def verify(self, run: str) -> list[str]:
        """Read a copy back; the files that are not what the manifest says. Raises ArtifactError where there is no manifest."""
        manifest = self._manifest(run)
        if not manifest:
            raise ArtifactError(f"{self.url_of(run)} has no {MANIFEST}: the copy is not complete")
        return [file for file, wanted in manifest["files"].items() if not self._has(f"{run}/{file}", FileHash(**wanted), None)]

    def _put_manifest(self, run: str, manifest: Mapping[str, Any]) -> None:
        content = (json.dumps(manifest, indent=1) + "\n").encode()
        with self._errors(f"{MANIFEST} was not written"):
            self._put(run, MANIFEST, io.BytesIO(content), FileHash(hashlib.sha256(content).hexdigest(), len(content)))

    def _put(self, run: str, file: str, source: IO[bytes], expected: FileHash) -> None:
        """Write under a name of our own, read back, compare, move."""
        partial, final = self._path(run, PARTIAL, secrets.token_hex(8)), self._path(run, file)
        for path in (partial, final):
            self._make_folder(path.rpartition("/")[0])
        try:
            with self._files.open(partial, "wb") as target:
                for block in iter(lambda: source.read(BLOCK_BYTES), b""):
                    target.write(block)
            found = self._hash(partial)
            if found != expected:
                raise ArtifactError(f"{self.url_of(run, file)}: what was written is not what was read (sha256 {found.sha256[:12]}, expected {expected.sha256[:12]})")
            self._move(partial, final)
        except BaseException:
            with _ignored():
                self._files.rm_file(partial)
            raise

    def _make_folder(self, path: str) -> None:
        if self._has_folders:
            self._files.makedirs(path, exist_ok=True)

    def _move(self, partial: str, final: str) -> None:
        if not self.is_local:
            self._files.mv(partial, final)
            return
        _sync(partial)
        Path(partial).replace(final)
        _sync(final.rpartition("/")[0])

    def _has(self, path: str, wanted: FileHash, listed: Any) -> bool:
        """Whether a file is there under its final name: as the manifest lists it, else by reading it."""
        place = self._path(path)
        with self._errors(f"{path} cannot be read"):
            try:
                size = self._files.size(place)
            except FileNotFoundError:
                return False
            return bool(size == wanted.bytes and (listed == asdict(wanted) or self._hash(place) == wanted))

    def _hash(self, path: str) -> FileHash:
        with self._files.open(path, "rb") as file:
            return hash_stream(file)

    def _manifest(self, run: str) -> dict[str, Any]:
        with self._errors(f"{MANIFEST} cannot be read"):
            try:
                found = json.loads(self._files.cat_file(self._path(run, MANIFEST)))
            except FileNotFoundError:
                return {}
        if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
            raise ArtifactError(f"{self.url_of(run, MANIFEST)} is not one of this program's; choose another place with --artifacts")
        return found

    def _check_owner(self, run: str, owner: str, manifest: Mapping[str, Any]) -> None:
        if manifest and manifest.get("owner") != owner:
            raise ArtifactError(
                f"{self.url_of(run)} holds a run of another study (fingerprint {manifest.get('owner')}, this one is {owner}); "
                "choose another place with --artifacts, or remove it"
            )

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except ArtifactError:
            raise
        except Exception as error:  # drivers raise whatever their libraries do
            raise ArtifactError(f"{self.safe}: {what}: {self._hide(error)}") from None

    def _hide(self, error: BaseException) -> str:
        """A driver's message on one line, without what may not be shown."""
        text = " ".join(str(error).split())[:400] or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def safe_url(url: str) -> str:
    """A URL for people and records: without user, password, query and fragment."""
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('://')[0]}://***"
    if "::" in url:  # several in one
        return f"{url.partition(':')[0]}:***"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def safe_argument(text: str) -> str:
    """An argument of a command line, such as `--artifacts=URL`, without the credentials of a URL in it."""
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    return flag + equals + safe_url(value)


def _absolute(url: str) -> str:
    return str(Path(url.partition("://")[2] or url).expanduser().absolute())


def _secrets_of(url: str) -> tuple[str, ...]:
    """What of a URL may not be shown, the longest first."""
    if safe_url(url) == url:
        return ()
    try:
        parts = urlsplit(url)
    except ValueError:
        return (url, url.partition("://")[2])
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    found = {url, parts.netloc.rpartition("@")[0], user, password, parts.query, parts.fragment}
    return tuple(sorted((text for text in found if text), key=len, reverse=True))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except Exception:
        return
