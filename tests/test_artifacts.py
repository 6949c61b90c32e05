"""Copies of run folders: whole or not there, verified, resumable, and without a word of a credential."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from autoft.artifacts import MANIFEST, PARTIAL, ArtifactStore, safe_argument, safe_url
from autoft.errors import ArtifactError, ConfigError
from autoft.file_hashes import checkpoints_in, content_hash, files_of, hash_files

ROOT = Path(__file__).parents[1]
FILES = {
    "summary.json": b"{}",
    "plots/curve.png": b"png" * 100,
    "checkpoints/final/open_clip_model.safetensors": b"tower" * 2_000_000,
    "checkpoints/final/head.safetensors": b"head",
    "checkpoints/final/autoft.json": b"{}",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny"
    unwanted = {"training/state.safetensors": b"unfinished", ".lock": b"", "checkpoints/.final.partial/x.safetensors": b"half"}
    for file, content in {**FILES, **unwanted}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    (folder / "link").symlink_to("/etc/hostname")
    return folder


@pytest.fixture(params=["path", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A plain path, the same as a URL, and a store that is no file system."""
    place = tmp_path / "store"
    return {"path": str(place), "file": place.as_uri(), "memory": f"memory://{tmp_path.name}/store"}[request.param]


def contents(url: str) -> dict[str, bytes]:
    """Everything in the store, by path."""
    files, root = fsspec.core.url_to_fs(url)
    if not files.exists(root):
        return {}
    return {path.removeprefix(files._strip_protocol(root)).lstrip("/"): files.cat_file(path) for path in files.find(root)}


def upload(url: str, run: Path, owner: str = "abc") -> tuple[int, int]:
    done = ArtifactStore(url).upload(run, owner, hash_files(run))
    return done.sent, done.kept


def test_a_run_folder_is_copied_with_a_manifest_and_the_second_time_nothing_is(url: str, run: Path) -> None:
    store = ArtifactStore(url)
    store.check_writable()
    assert contents(url) == {}
    assert upload(url, run) == (len(FILES), 0)
    found = contents(url)
    manifest = json.loads(found.pop(f"tiny/{MANIFEST}"))
    assert found == {f"tiny/{file}": content for file, content in FILES.items()}
    assert set(manifest["files"]) == set(FILES) and manifest["files"]["summary.json"]["bytes"] == 2
    assert store.verify("tiny") == []
    assert upload(url, run) == (0, len(FILES))


def test_only_what_is_missing_or_differs_is_sent(url: str, run: Path) -> None:
    upload(url, run)
    files, root = fsspec.core.url_to_fs(url)
    files.rm_file(f"{root}/tiny/plots/curve.png")
    (run / "summary.json").write_bytes(b"[]")  # as long as before
    sent: list[str] = []
    done = ArtifactStore(url).upload(run, "abc", hash_files(run), sent.append)
    assert sent == ["plots/curve.png", "summary.json"] and done.kept == 3
    assert contents(url)["tiny/summary.json"] == b"[]" and ArtifactStore(url).verify("tiny") == []


def test_what_is_damaged_over_there_is_found(url: str, run: Path) -> None:
    upload(url, run)
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/tiny/checkpoints/final/head.safetensors", b"HEAD")
    assert ArtifactStore(url).verify("tiny") == ["checkpoints/final/head.safetensors"]
    files.rm_file(f"{root}/tiny/{MANIFEST}")
    with pytest.raises(ArtifactError, match="not complete"):
        ArtifactStore(url).verify("tiny")
    assert upload(url, run) == (1, 4), "without a manifest what is there is read, not believed"


def test_what_arrives_changed_is_not_moved_to_its_name(url: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = hash_files(run)
    (run / "summary.json").write_bytes(b"[]")  # it changed since it was hashed: as bits that change on their way
    with pytest.raises(ArtifactError, match=r"summary\.json: what was written is not what was read \(sha256 .*, expected "):
        ArtifactStore(url).upload(run, "abc", hashes)
    assert not any(name.endswith(("summary.json", MANIFEST)) or PARTIAL in name for name in contents(url))


def test_another_studys_copy_is_not_touched(url: str, run: Path) -> None:
    upload(url, run)
    before = contents(url)
    with pytest.raises(ArtifactError, match=r"another study .*abc, this one is def"):
        ArtifactStore(url).check_owner("tiny", "def")
    with pytest.raises(ArtifactError, match="another study"):
        upload(url, run, "def")
    assert contents(url) == before
    ArtifactStore(url).check_owner("other", "def")


KILLED = """
import os, signal, sys
from pathlib import Path
import autoft.artifacts as artifacts
from autoft.file_hashes import hash_files

url, run, where = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
hashes, store = hash_files(run), artifacts.ArtifactStore(url)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Source:
    def __init__(self, source):
        self.source, self.blocks = source, 0
    def read(self, size):
        self.blocks += 1
        return die() if self.blocks == 2 else self.source.read(size)

put = store._put
if where == "while writing":
    store._put = lambda run, file, source, expected: put(run, file, Source(source) if "model" in file else source, expected)
elif where == "before it is verified":
    store._put = lambda run, file, source, expected: (setattr(store, "_hash", die if "model" in file else artifacts.ArtifactStore._hash.__get__(store)), put(run, file, source, expected))
elif where == "before it is moved":
    move = store._move
    store._move = lambda partial, final: die() if "model" in final else move(partial, final)
elif where == "before the manifest":
    store._put_manifest = die
store.upload(run, "abc", hashes)
"""


@pytest.mark.parametrize("where", ["while writing", "before it is verified", "before it is moved", "before the manifest"])
def test_a_killed_upload_leaves_nothing_half_written_and_goes_on(where: str, tmp_path: Path, run: Path) -> None:
    store = tmp_path / "store"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(store), str(run), where], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    found = {name: content for name, content in contents(str(store)).items() if PARTIAL not in name}
    arrived = len(FILES) if where == "before the manifest" else sorted(FILES).index("checkpoints/final/open_clip_model.safetensors")
    assert len(found) == arrived and all(FILES[name.removeprefix("tiny/")] == content for name, content in found.items())
    assert upload(str(store), run) == (len(FILES) - arrived, arrived)
    assert ArtifactStore(str(store)).verify("tiny") == [] and not any(PARTIAL in name for name in contents(str(store)))


def test_replacing_files_takes_the_manifest_away_first(tmp_path: Path, run: Path) -> None:
    """Old and new files stand side by side for a while; no manifest then says that they belong together."""
    store = tmp_path / "store"
    upload(str(store), run)
    (run / "summary.json").write_bytes(b"new")
    (run / "checkpoints/final/open_clip_model.safetensors").write_bytes(b"new" * 5_000_000)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(store), str(run), "while writing"], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert ended.returncode == -signal.SIGKILL and f"tiny/{MANIFEST}" not in contents(str(store))
    assert contents(str(store))["tiny/checkpoints/final/open_clip_model.safetensors"] == FILES["checkpoints/final/open_clip_model.safetensors"]
    assert upload(str(store), run) == (2, 3) and ArtifactStore(str(store)).verify("tiny") == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/runs", ["--artifacts s3://bucket/runs", "needs the package s3fs", "pip install s3fs"]),
        ("s3://KEY:SeCrEt@bucket/runs?token=tOkEn", ["--artifacts s3://bucket/runs", "pip install s3fs"]),
        ("nowhere://x/y", ["nowhere", "valid are a folder, file:///FOLDER, s3://BUCKET/PREFIX"]),
        ("simplecache::s3://KEY:SeCrEt@bucket", ["valid are"]),
        ("file://folder/store", ["file://folder/store", "file:///FOLDER"]),
        ("s3://[KEY:SeCrEt@bucket", ["s3://***"]),
        ("", ["(empty)", "valid are"]),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(url: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ArtifactStore(url)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not any(secret in str(caught.value) for secret in ("SeCrEt", "tOkEn", "KEY"))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        ArtifactStore(str(tmp_path / "file" / "store")).check_writable()
    assert caught.value.exit_code == 7


def test_credentials_are_never_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://user:SeCrEt@host/store?sig=tOkEn#fRaG"
    store = ArtifactStore(url)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(f"403 for {url}: user:SeCrEt, sig=tOkEn")

    monkeypatch.setattr(store._files, "open", fails)
    with pytest.raises(ArtifactError) as caught:
        store.upload(run, "abc", hash_files(run))
    for text in (str(caught.value), repr(store), store.safe, store.url_of("tiny", "summary.json")):
        assert not any(secret in text for secret in ("SeCrEt", "tOkEn", "fRaG")), text
    assert store.url_of("tiny", "x") == "memory://host/store/tiny/x"


def test_urls_and_arguments_without_credentials() -> None:
    assert safe_url("s3://KEY:SECRET@bucket/a/b?x=1#y") == "s3://bucket/a/b"
    assert safe_url("/plain/p@th?") == "/plain/p@th?"
    assert safe_argument("--artifacts=s3://K:S@b/x?y") == "--artifacts=s3://b/x"
    assert [safe_argument(text) for text in ("launch", "s3://K:S@b", "--set=a=b@c")] == ["launch", "s3://b", "--set=a=b@c"]


def test_what_is_copied_and_how_checkpoints_are_hashed(run: Path) -> None:
    assert files_of(run) == tuple(sorted(FILES))
    hashes = hash_files(run)
    found = checkpoints_in(hashes)
    weights = {name: hashes[f"checkpoints/final/{name}"] for name in ("head.safetensors", "open_clip_model.safetensors")}
    assert found == {"checkpoints/final": content_hash(weights)} and found["checkpoints/final"].bytes == 10_000_004
    swapped = dict(zip(weights, reversed(weights.values()), strict=True))
    assert content_hash(swapped).sha256 != content_hash(weights).sha256, "which file holds what belongs to it"
    (run / "checkpoints/final/README.md").write_text("more words")
    assert checkpoints_in(hash_files(run)) == found, "words beside the weights do not"
