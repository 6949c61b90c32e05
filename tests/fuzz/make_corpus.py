"""The corpus: malformed inputs by target, each with the error it must lead to. `python -m tests.fuzz.make_corpus` writes them.

Deterministic, so that a change of the corpus is seen as one. What a fuzzer finds goes into `found/TARGET/` as it is, with a line in
FOUND below, and stays.
"""

import io
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.fuzz.targets import STUDY_ID, png

CORPUS = Path(__file__).with_name("corpus")
C, D, M, S, A, U = "ConfigError", "DataError", "ModelError", "StorageError", "AutoFTError", "UnusableImage"


class Case(NamedTuple):
    """An input, the error class it must raise (None: it is taken) and what the message must contain."""

    target: str
    name: str
    data: bytes
    error: str | None
    says: str = ""


def cases() -> Iterator[Case]:
    """Every input of the corpus."""
    for target, found in (
        ("study_file", study_files()),
        ("study_fields", study_fields()),
        ("override", overrides()),
        ("storage_url", storage_urls()),
        ("table", tables()),
        ("wilds_table", wilds_tables()),
        ("shard", shards()),
        ("pattern", patterns()),
        ("image", images()),
        ("arrays_npz", npz_files()),
        ("arrays_npy", npy_files()),
        ("class_names", class_names()),
        ("descriptions", descriptions()),
        ("journal", journals()),
        ("hyperparameters", hyperparameters()),
        ("trials_table", trials_tables()),
        ("summary", summaries()),
        ("comparison", comparisons()),
        ("checkpoint_info", infos()),
        ("checkpoint_head", heads()),
        ("checkpoint_weights", weights()),
        ("checkpoint_config", configs()),
        ("delta", deltas()),
    ):
        for name, data, *expected in found:
            yield Case(target, name, data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data, *expected)


def study_files() -> Iterator[tuple[Any, ...]]:
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    yield "billion-laughs.yaml", laughs, C, "aliases counted"
    yield "billion-merges.yaml", merges, C, "aliases counted"
    yield "contains-itself.yaml", "a: &a [*a]", C, "values"
    yield "contains-itself-as-key.yaml", "&a ? *a\n: 1", C
    yield "deep-lists.yaml", "[" * 20_000, C, "levels"
    yield "deep-mappings.yaml", "{a: " * 5_000, C, "levels"
    yield "deep-blocks.yaml", "\n".join(" " * i + "a:" for i in range(200)), C, "levels"
    yield "key-twice.yaml", "study: a\nstudy: b", C, "'study' is there twice"
    yield "nested-key-twice.yaml", "trial: {steps: 1, steps: 2}", C, "'steps' is there twice"
    yield "constructor.yaml", "study: !!python/object/apply:os.system ['echo x']", C, "tag"
    yield "constructor-name.yaml", "study: !!python/name:os.system", C, "tag"
    yield "constructor-module.yaml", "!!python/module:antigravity x", C, "tag"
    yield "constructor-new.yaml", "!!python/object/new:type {}", C, "tag"
    yield "own-tag.yaml", "study: !Ref x", C, "tag"
    yield "empty.yaml", "", C, "must be a mapping"
    yield "null.yaml", "~", C, "must be a mapping"
    yield "list.yaml", "[1, 2]", C, "must be a mapping"
    yield "text.yaml", "hello", C, "must be a mapping"
    yield "two-documents.yaml", "a: 1\n---\nb: 2", C, "single document"
    yield "tab.yaml", "study:\n\tx: 1", C, "'\\t'"
    yield "latin1.yaml", "study: caf\xe9".encode("latin-1"), C, "utf-8"
    yield "utf16.yaml", "study: a".encode("utf-16"), C, "utf-8"
    yield "nulls.yaml", bytes(200), C
    yield "binary.yaml", png(), C
    yield "html.yaml", "<html><body>404</body></html>", C
    yield "unclosed.yaml", 'study: "a', C, "not valid YAML"
    yield "bad-date.yaml", "study: 2001-99-99", C, "not valid YAML"
    yield "bad-timestamp-tag.yaml", "a: !!timestamp x", C
    yield "bad-bool-tag.yaml", "a: !!bool x", C
    yield "bad-int-tag.yaml", "a: !!int ''", C
    yield "bad-float-tag.yaml", "a: !!float x", C
    yield "bad-binary-tag.yaml", "a: !!binary é", C
    yield "hexadecimal-nothing.yaml", "a: 0x_", C
    yield "octal-nothing.yaml", "a: 0b_", C
    yield "long-integer.yaml", "a: " + "9" * 5000, C
    yield "sexagesimal.yaml", "a: 1" + ":59" * 300, C
    yield "unhashable-key.yaml", "? [1, 2]\n: 3", C, "unhashable"
    yield "set.yaml", "!!set {a, b}", C
    yield "omap.yaml", "!!omap [a: 1, b]", C
    yield "pairs.yaml", "!!pairs [a]", C
    yield "unknown-alias.yaml", "a: *b", C, "undefined alias"
    yield "directive.yaml", "%YAML 9.9\n---\na: 1", C
    yield "long-key.yaml", "k" * 3000 + ": 1", C
    yield "many-unknown-keys.yaml", "\n".join(f"k{i}: 1" for i in range(3000)), C, "more"


def study_fields() -> Iterator[tuple[Any, ...]]:
    yield "nothing.yaml", "", None
    for name, text in {
        "dots": "..", "parent": "../x", "slash": "a/b", "absolute": "/etc", "hidden": ".x", "long": "a" * 300, "emoji": "\U0001f600",
        "newline": "a\\n", "markup": "<script>alert(1)</script>", "url": "javascript:alert(1)", "space": "a b", "empty": "", "dash": "-rf",
        "quote": "a';drop table studies;--", "percent": "%2e%2e", "backslash": "a\\\\b", "right-to-left": "\u202egpj",
    }.items():  # fmt: skip
        yield f"name-{name}.yaml", f'study: "{text}"', C, "study ="
    yield "name-null.yaml", 'study: "a\\0b"', C, "null character"
    yield "name-surrogate.yaml", 'study: "\\ud800"', C, "surrogate"
    yield "name-boolean.yaml", "study: on", C, "study ="
    yield "name-number.yaml", "study: 12", C, "study ="
    yield "steps-boolean.yaml", "trial: {steps: true}", C, "trial.steps = True: must be a number"
    yield "steps-yes.yaml", "trial: {steps: yes}", C, "trial.steps"
    yield "steps-nan.yaml", "trial: {steps: .nan}", C, "trial.steps"
    yield "steps-inf.yaml", "trial: {steps: .inf}", C, "trial.steps"
    yield "steps-huge.yaml", "trial: {steps: 99999999999999999999}", C, "trial.steps"
    yield "steps-negative.yaml", "trial: {steps: -1}", C, "trial.steps"
    yield "rate-boolean.yaml", "search_space: {base_lr: true}", C, "search_space.base_lr"
    yield "rate-nan.yaml", "search_space: {base_lr: .nan}", C, "search_space.base_lr"
    yield "rate-minus-inf.yaml", "search_space: {base_lr: -.inf}", C, "search_space.base_lr"
    yield "range-boolean.yaml", "search_space: {base_lr: 1.0, lr_factor: [true, 2]}", C, "lr_factor"
    yield "range-three.yaml", "search_space: {base_lr: 1.0, lr_factor: [1, 2, 3]}", C, "lr_factor"
    yield "range-text.yaml", "search_space: {base_lr: 1.0, lr_factor: ab}", C, "lr_factor"
    yield "weights-boolean.yaml", "search_space: {base_lr: 1.0, loss_weights: {hinge: [false, 1]}}", C, "loss_weights"
    yield "fixed-nan.yaml", "search_space: {base_lr: 1.0, fixed: {alpha: .nan}}", C, "alpha"
    yield "fixed-list.yaml", "search_space: {base_lr: 1.0, fixed: {alpha: [1]}}", C
    yield "knob-markup.yaml", 'search_space: {base_lr: 1.0, knobs: {"<b>": {low: 0, high: 1}}}', C
    yield "section-is-list.yaml", "trial: [1]", C, "trial"
    yield "section-is-text.yaml", "search: x", C, "search"
    yield "integer-key.yaml", "1: 2", C, "no text"
    yield "null-key.yaml", "~: 2", C, "no text"
    yield "boolean-key.yaml", "on: 2", C, "no text"
    yield "alphas-boolean.yaml", "wise_ft: {alphas: [0, true]}", C, "wise_ft.alphas"
    yield "alphas-outside.yaml", "wise_ft: {alphas: [2]}", C, "wise_ft.alphas"
    folder = "{layout: folder, path: x}"
    yield "path-null.yaml", f'data: {{train: {{layout: folder, path: "a\\0b"}}, val_id: {folder}, val_ood: {folder}}}', C, "data.train.path"
    yield "path-no-user.yaml", f"data: {{train: {{layout: folder, path: ~nosuchuser/x}}, val_id: {folder}, val_ood: {folder}}}", C, "data.train.path"
    yield "path-long.yaml", f"data: {{train: {{layout: folder, path: {'x' * 300}}}, val_id: {folder}, val_ood: {folder}}}", C, "data.train.path"
    yield "path-deep.yaml", f"data: {{train: {{layout: folder, path: {'x/' * 3000}}}, val_id: {folder}, val_ood: {folder}}}", C, "data.train.path"
    yield "path-number.yaml", f"data: {{train: {{layout: folder, path: 3}}, val_id: {folder}, val_ood: {folder}}}", C, "data.train.path"
    yield "layout-unknown.yaml", f"data: {{train: {{layout: pickle, path: x}}, val_id: {folder}, val_ood: {folder}}}", C, "pickle"
    yield "set-name.yaml", f'data: {{train: {folder}, val_id: {folder}, val_ood: {folder}, test_ood: {{"<img src=x onerror=alert(1)>": {folder}}}}}', C
    yield "set-name-path.yaml", f"data: {{train: {folder}, val_id: {folder}, val_ood: {folder}, test_ood: {{../x: {folder}}}}}", C
    yield "bad-image-word.yaml", f"data: {{train: {folder}, val_id: {folder}, val_ood: {folder}, on_bad_image: ignore}}", C, "data.on_bad_image"
    yield "near-boolean.yaml", f"data: {{train: {folder}, val_id: {folder}, val_ood: {folder}, near_duplicates: true}}", C, "near_duplicates"
    yield "classnames-long.yaml", f"data: {{train: {folder}, val_id: {folder}, val_ood: {folder}, classnames: {'x' * 6000}}}", C, "data.classnames"
    yield "classnames-booleans.yaml", f"data: {{train: {folder}, val_id: {folder}, val_ood: {folder}, classnames: [yes, no]}}", C, "data.classnames"
    yield "template-braces.yaml", f"data: {{train: {folder}, val_id: {folder}, val_ood: {folder}, templates: ['{{}}{{0.__class__}}']}}", C
    yield "weights-long.yaml", f"model: {{name: ViT-B-32, pretrained: {'x' * 5000}}}", C, "model.pretrained"
    yield "model-no-user.yaml", "model: {name: 'local-dir:~nosuchuser/x'}", C, "model.name"


def overrides() -> Iterator[tuple[Any, ...]]:
    yield "good.txt", "trial.steps=3", None
    yield "empty.txt", "", C, "--set"
    yield "no-value.txt", "trial.steps", C, "--set"
    yield "no-key.txt", "=3", C, "--set"
    yield "bad-yaml.txt", "trial.steps=[", C, "--set"
    yield "into-number.txt", "study.x.y=1", C, "--set"
    yield "dots.txt", "...=1", C
    yield "constructor.txt", "study=!!python/object/apply:os.system [x]", C, "--set"
    levels = [f"{letter}: &{letter} [{','.join([f'*{before}'] * 10)}]" for before, letter in zip("abcd", "bcde", strict=True)]
    yield "laughs.txt", f"study={{a: &a [x,x,x,x,x,x,x,x,x,x], {', '.join(levels)}}}", C, "--set"
    yield "not-utf8.txt", b"study=\xff\xfe", C
    yield "null.txt", b"trial.steps=\0", C


def storage_urls() -> Iterator[tuple[Any, ...]]:
    yield "good-postgres.txt", "postgresql://u:p@h:5432/d", None
    yield "good-sqlite.txt", "sqlite:///studies.db", None
    yield "socket.txt", "postgresql:///d?host=/run/postgresql", None
    for name, text in {
        "empty": "", "spaces": "   ", "no-scheme": "localhost/db", "mysql": "mysql://u:p@h/d", "http": "http://example.org/", "file": "file:///etc/passwd",
        "javascript": "javascript:alert(1)", "driver-only": "+psycopg2://h/d", "two-ats": "postgresql://u:p@x@h/d", "port-text": "postgresql://h:abc/d",
        "memory": "sqlite://", "memory-name": "sqlite:///:memory:", "sqlite-host": "sqlite://host/x.db", "sqlite-uri": "sqlite:///file:x?mode=memory",
        "sqlite-query": "sqlite:///x.db?timeout=1", "colon": ":", "slashes": "//", "unicode-scheme": "pöstgres://h/d", "long-scheme": "x" * 3000 + "://",
        "brackets": "postgresql://[::1/d", "line": "postgres\n://h/d", "pickle": "pickle:///x",
    }.items():  # fmt: skip
        yield f"{name}.txt", text, S, "AUTOFT_STORAGE_URL"
    yield "sqlite-no-user.txt", "sqlite:///~nosuchuser/x.db", S
    yield "sqlite-null.txt", b"sqlite:///a\0b.db", S
    yield "sqlite-long.txt", "sqlite:///" + "x" * 5000, S
    yield "postgres-null.txt", b"postgresql://u:p@h/d\0", S
    yield "port-huge.txt", "postgresql://h:99999999999999999999/d", S
    yield "not-utf8.txt", b"postgresql://u:\xff@h/d", S


def tables() -> Iterator[tuple[Any, ...]]:
    head = "filepath,label\n"
    yield "good.csv", head + "a.png,x\nb.png,y\n", None
    yield "empty.csv", "", D
    yield "header-only.csv", head, D, "has no rows"
    yield "parent.csv", head + "../../etc/passwd,x\n", D, "line 2: '../../etc/passwd' leads out"
    yield "parent-inside.csv", head + "a.png,x\nsub/../../x.png,x\n", D, "line 3"
    yield "absolute.csv", head + "/etc/passwd,x\n", D, "line 2: '/etc/passwd' leads out"
    yield "device.csv", head + "/dev/zero,x\n", D, "leads out"
    yield "process.csv", head + "/proc/self/environ,x\n", D, "leads out"
    yield "dot.csv", head + ".,x\n", D, "line 2"
    yield "dots.csv", head + "..,x\n", D, "line 2"
    yield "itself.csv", head + "t.csv,x\n", U, "not an image"
    yield "null-in-path.csv", b"filepath,label\na\0.png,x\n", D
    yield "long-path.csv", head + "x" * 5000 + ",y\n", D, "there is no image"
    yield "deep-path.csv", head + "x/" * 3000 + ",y\n", D
    yield "tilde.csv", head + "~/x.png,y\n", D, "there is no image"
    yield "url.csv", head + "http://example.org/x.png,y\n", D, "there is no image"
    yield "no-label-column.csv", "filepath\na.png\n", D, "label"
    yield "column-twice.csv", "filepath,label,label\na.png,x,y\n", D, "more than once"
    yield "path-column-twice.csv", "filepath,filepath,label\na.png,b.png,x\n", D, "more than once"
    yield "empty-cell.csv", head + ",x\n", D, "line 2: column 'filepath' is empty"
    yield "open-quote.csv", head + '"a.png,x\n', D, "cannot read the table"
    yield "quote-garbage.csv", head + '"a.png"z,x\n', D, "cannot read the table"
    yield "huge-cell.csv", head + "a.png," + "x" * 132_000, D, "cannot read the table"
    yield "latin1.csv", "filepath,label\na.png,caf\xe9\n".encode("latin-1"), D, "cannot read the table"
    yield "utf16.csv", "filepath,label\na.png,x\n".encode("utf-16"), D
    yield "semicolons.csv", "filepath;label\na.png;x\n", D, "no such column"
    yield "old-mac-lines.csv", "filepath,label\ra.png,x\r", None
    yield "binary.csv", png(), D
    yield "long-number-label.csv", head + "a.png," + "9" * 5000 + "\n", None
    yield "formula-label.csv", head + "a.png,=cmd|' /C calc'!A0\n", None


def wilds_tables() -> Iterator[tuple[Any, ...]]:
    head = "split,location_remapped,y,filename\n"
    yield "good.csv", head + "train,1,3,a.png\n", None
    yield "parent.csv", head + "train,1,3,../../../etc/passwd\n", D, "leads out"
    yield "absolute.csv", head + "train,1,3,/etc/passwd\n", D, "leads out"
    yield "class-long.csv", head + "train,1," + "9" * 5000 + ",a.png\n", D, "is no class"
    yield "class-superscript.csv", head + "train,1,\u00b2,a.png\n", D, "is no class"
    yield "class-negative.csv", head + "train,1,-1,a.png\n", D, "is no class"
    yield "columns.csv", head + "train,1\n", D, "columns"
    yield "null.csv", b"split,location_remapped,y,filename\ntrain,1,3,a\0.png\n", D


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive; a bare TarInfo is a member without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    used = buffer.getvalue().rstrip(b"\0")
    return used + bytes(-len(used) % 512 + 1024)  # fewer blocks of zeros at the end


def special(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def header(name: bytes, size: bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """A member's header with a size field of any kind, and a right checksum."""
    block = bytearray(512)
    block[:len(name)], block[100:107], block[124 : 124 + len(size)] = name, b"0000644", size
    block[156:157], block[257 : 257 + len(magic)], block[148:156] = kind, magic, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", b"%011o" % len(record), kind) + record.ljust(-(-len(record) // 512) * 512, b"\0")


def shards() -> Iterator[tuple[Any, ...]]:
    good = tar(("0.png", png()), ("0.cls", b"1"))
    pair = (("0.png", png()), ("0.cls", b"1"))
    yield "good.tar", good, None
    yield "empty.tar", b"", D
    yield "zeros.tar", bytes(1024), D
    yield "not-a-tar.tar", b"<html>404</html>" * 100, D, "not a whole, uncompressed tar"
    yield "gzip.tar", b"\x1f\x8b\x08\0" + bytes(600), D, "uncompressed"
    yield "cut-in-header.tar", good[:300], D
    yield "cut-in-image.tar", good[:600], D
    yield "cut-in-second.tar", good[:1100], D
    yield "parent-name.tar", tar(("../../0.png", png()), ("../../0.cls", b"1")), None
    yield "absolute-name.tar", tar(("/etc/0.png", png()), ("/etc/0.cls", b"1")), None
    yield "parent-name-pax.tar", tar(("../" * 60 + "0.png", png()), ("../" * 60 + "0.cls", b"1"), form=tarfile.PAX_FORMAT), None
    yield "symlink.tar", tar(special("0.png", tarfile.SYMTYPE, "/etc/passwd"), ("0.cls", b"1")), D, "has a label but no image"
    yield "hardlink.tar", tar(special("0.png", tarfile.LNKTYPE, "../../etc/passwd"), ("0.cls", b"1")), D, "no image"
    yield "symlink-folder.tar", tar(special("d", tarfile.SYMTYPE, "/tmp"), ("d/0.png", png()), ("d/0.cls", b"1")), None
    yield "fifo.tar", tar(special("0.png", tarfile.FIFOTYPE), ("0.cls", b"1")), D, "no image"
    yield "character-device.tar", tar(special("0.png", tarfile.CHRTYPE), ("0.cls", b"1")), D, "no image"
    yield "block-device.tar", tar(special("0.png", tarfile.BLKTYPE), *pair), None
    yield "folder-as-image.tar", tar(special("0.png", tarfile.DIRTYPE), ("0.cls", b"1")), D, "no image"
    yield "size-beyond-the-end.tar", header(b"0.png", b"%011o" % (1 << 32)) + bytes(512), D, "unexpected end"
    yield "size-negative.tar", header(b"0.png", b"-0000001000") + bytes(512), D
    yield "size-negative-binary.tar", header(b"0.png", b"\xff" * 12) + bytes(512), D
    yield "size-huge-binary.tar", header(b"0.png", b"\x80" + bytes(3) + b"\x7f" + bytes(7)) + bytes(512), D
    yield "size-negative-pax.tar", good[:1024] + pax(b"15 size=-10240\n") + header(b"1.png", b"0") + bytes(1024), D
    yield "size-leads-back.tar", good[:1024] + pax(b"14 size=-1536\n") + header(b"1.png", b"0") + bytes(1024), D, "negative"
    yield "size-huge-text.tar", header(b"0.cls", b"%011o" % (1 << 30)) + bytes(512), D
    yield "label-of-a-megabyte.tar", zlib.compress(b"")[:0] + header(b"0.cls", b"%011o" % (1 << 20 | 1)) + b"1" * 1024, D
    yield "long-name-huge.tar", header(b"x", b"\x80" + bytes(3) + b"\x7f" + bytes(7), b"L") + bytes(512), D
    yield "pax-huge.tar", header(b"x", b"%011o" % (1 << 30), b"x") + bytes(512), D
    yield "pax-quadratic.tar", pax(b"1" * 16_000) + header(b"1.png", b"0") + bytes(1024), D
    yield "pax-endless.tar", b"".join([pax(b"12 path=abc\n")] * 30) + bytes(1024), D
    yield "long-names-endless.tar", b"".join([header(b"x", b"00000000003", b"L") + b"abc".ljust(512, b"\0")] * 30) + bytes(1024), D
    yield "sparse.tar", header(b"0.png", b"00000000010", b"S", b"ustar  \0") + bytes(1024), D
    yield "key-twice.tar", tar(*pair, ("0.png", png())), D, "two images"
    yield "two-formats.tar", tar(*pair, ("0.jpg", png())), D, "two images"
    yield "label-twice.tar", tar(*pair, ("0.cls", b"2")), D, "there twice"
    yield "no-label.tar", tar(("0.png", png())), D, "has no label"
    yield "no-image.tar", tar(("0.cls", b"1")), D
    yield "empty-label.tar", tar(("0.png", png()), ("0.cls", b"")), D, "is empty"
    yield "label-not-utf8.tar", tar(("0.png", png()), ("0.cls", b"\xff\xfe")), D, "not UTF-8"
    yield "json-bad.tar", tar(("0.png", png()), ("0.json", b"{")), D, "not JSON"
    yield "json-deep.tar", tar(("0.png", png()), ("0.json", b"[" * 3_000)), D, "not JSON"
    yield "json-boolean.tar", tar(("0.png", png()), ("0.json", b'{"label": true}')), D, "label must be"
    yield "json-object.tar", tar(("0.png", png()), ("0.json", b'{"label": {"a": 1}}')), D, "label must be"
    yield "json-long-number.tar", tar(("0.png", png()), ("0.json", b'{"label": ' + b"9" * 5000 + b"}")), D, "not JSON"
    yield "name-not-utf8.tar", header(b"\xff\xfe.png", b"%011o" % len(png())) + png().ljust(512, b"\0") + bytes(1024), D
    yield "image-is-html.tar", tar(("0.png", b"<html></html>"), ("0.cls", b"1")), U, "not an image"
    yield "image-is-empty.tar", tar(("0.png", b""), ("0.cls", b"1")), U, "is empty"
    yield "hidden-only.tar", tar((".0.png", png()), (".0.cls", b"1")), D, "no examples"


def patterns() -> Iterator[tuple[Any, ...]]:
    yield "missing.txt", "x-{000..003}.tar", D, "No such file"
    yield "bomb.txt", "x-{0..999999999}.tar", D, "more than"
    yield "bomb-negative.txt", "x-{-999999999..0}.tar", D, "more than"
    yield "bomb-product.txt", "{0..999}{0..999}{0..999}", D, "more than"
    yield "bomb-commas.txt", "{,}" * 40, D, "more than"
    yield "bomb-letters.txt", "{a..z}" * 10, D, "more than"
    yield "bomb-nested.txt", "{{0..999999999},x}", D, "more than"
    yield "bomb-digits.txt", "{0.." + "9" * 3000 + "}", D, "more than"
    yield "same-twice.txt", "{x,x}.tar", D
    yield "unbalanced.txt", "{a", D, "nbalanced"
    yield "deep.txt", "{" * 1500 + "}" * 1500, D, "levels deep"
    yield "deep-escaped.txt", "\\{" * 1000 + "}" * 1000, D
    yield "long.txt", "{" + "a," * 4000 + "}", D, "limit"
    yield "null.txt", b"a\0b{1..2}", D
    yield "step-zero.txt", "{0..3..0}", D
    yield "parent.txt", "../../../../../../etc/{passwd,shadow}", D
    yield "device.txt", "../../../../../../dev/zero", D, "is not a file"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2, body: bytes = b"\0" * 100) -> bytes:
    """A PNG that promises what it likes."""
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + first + b"".join(more) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    ramp = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(size[1], size[0], 3)
    return Image.fromarray((ramp * 7 % 256).astype(np.uint8)).convert(mode)


def images() -> Iterator[tuple[Any, ...]]:
    jpeg, whole, webp, gif = (encoded(picture(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF"))
    tiff, bmp = encoded(picture(), "TIFF"), encoded(picture(), "BMP")
    orientation = Image.Exif()
    orientation[0x0112] = 6
    sixteen = Image.fromarray((np.arange(96).reshape(8, 12) * 682).astype(np.uint16))
    frames = [picture(), picture().rotate(90)]
    taken = {
        "1x1.png": encoded(picture(size=(1, 1)), "PNG"), "cmyk.jpg": encoded(picture("CMYK"), "JPEG"), "grey.jpg": encoded(picture("L"), "JPEG"),
        "16-bit.png": encoded(sixteen, "PNG"), "16-bit.tiff": encoded(sixteen, "TIFF"), "grey-alpha.png": encoded(picture("LA"), "PNG"),
        "palette.png": encoded(picture("P"), "PNG", transparency=3), "palette-bytes.png": encoded(picture("P"), "PNG", transparency=bytes(range(256))),
        "1-bit.png": encoded(picture("1"), "PNG"), "alpha.webp": encoded(picture("RGBA"), "WEBP"), "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "turned-by-exif.jpg": encoded(picture(), "JPEG", exif=orientation), "bad-icc-profile.jpg": encoded(picture(), "JPEG", icc_profile=b"\xff" * 300),
        "bad-icc-profile.png": encoded(picture(), "PNG", icc_profile=b"no profile"), "bad-exif.jpg": encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "wrong-extension.jpg": whole, "garbage-after-end.jpg": jpeg + b"garbage" * 50, "long-comment.jpg": encoded(picture(), "JPEG", comment=b"x" * 20_000),
    }  # fmt: skip
    yield from ((name, data, None) for name, data in taken.items())
    yield "empty.jpg", b"", U, "0 bytes"
    yield "html.jpg", b"<!doctype html><html><body>404 Not Found</body></html>", U, "is not an image"
    yield "svg.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>', U, "is not an image"
    yield "xxe.svg.jpg", b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>', U, "is not an image"
    yield "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", U, "is not an image"
    yield "pdf.jpg", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", U, "is not an image"
    yield "zip.jpg", b"PK\x03\x04" + bytes(100), U, "is not an image"
    yield "pickle.jpg", b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.", U, "is not an image"
    yield "text.jpg", b"\xff\xd8 only the first bytes of a JPEG", U
    yield "icon.jpg", b"\0\0\x01\0\x01\0" + bytes(50), U, "is not an image"
    yield "bomb.png", raw_png(30_000, 30_000), U
    yield "bomb-just-too-large.png", raw_png(10_000, 10_000), U, "more than the limit"
    yield "bomb-side.png", raw_png(2**31 - 1, 1), U
    yield "sliver.png", raw_png(20_000, 1), U, "times the other"
    yield "zero-wide.png", raw_png(0, 10), U
    yield "bomb-in-text.png", raw_png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 5_000_000)), body=b"\0" * 400), U
    yield "bomb-in-profile.png", raw_png(8, 8, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(5_000_000))), body=b"\0" * 200), U
    yield "bomb.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;", U
    yield "bomb.bmp", b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0), U
    yield "negative.bmp", b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, -8, -8, 1, 24, 0, 0, 0, 0, 0, 0), U
    yield "bomb.ppm", b"P6 60000 60000 255\n" + bytes(100), U
    yield "negative.ppm", b"P6 -4 4 255\n" + bytes(100), U
    yield "long-number.ppm", b"P6 " + b"9" * 6000 + b" 4 255\n", U
    yield "float.tiff", encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), U, "mode F"
    yield "loop.tiff", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", U
    yield "offset.tiff", b"II*\0\xff\xff\xff\xff", U
    for name, data in {"jpg": jpeg, "png": whole, "webp": webp, "gif": gif, "tiff": tiff, "bmp": bmp}.items():
        yield f"half.{name}", data[: len(data) // 2], U
        yield f"head.{name}", data[:12], U
    yield "end-missing.jpg", jpeg[:-80], U, "truncated"
    yield "zeroed.png", whole[:60] + bytes(len(whole) - 60), U
    yield "crc.png", whole[:20] + b"\xff" + whole[21:], U
    yield "tables-missing.jpg", jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") :], U


def npz(**parts: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data)
    return buffer.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_header(text: str, version: bytes = b"\x01\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode()


_PICTURES = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
_LABELS = np.arange(2)


def npz_files() -> Iterator[tuple[Any, ...]]:
    pictures, labels = npy(_PICTURES), npy(_LABELS)
    objects = npy(np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    good = npz(images=pictures, labels=labels)
    promise = npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 60000, 60000, 3), }\n")
    yield "good.npz", good, None
    yield "empty.npz", b"", D
    yield "not-a-zip.npz", b"hello" * 20, D
    yield "is-an-npy.npz", pictures, D
    yield "cut.npz", good[: len(good) // 2], D
    yield "no-images.npz", npz(labels=labels), D, "has no such array"
    yield "pickled-images.npz", npz(images=objects, labels=labels), D
    yield "pickled-labels.npz", npz(images=pictures, labels=objects), D, "Python objects"
    yield "promises-20-gb.npz", npz(images=promise, labels=labels), D
    yield "promises-too-much.npz", npz(images=npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 8, 8, 3), }\n"), labels=labels), D
    yield "negative-shape.npz", npz(images=npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, 8, 8, 3), }\n"), labels=labels), D
    yield "labels-negative-shape.npz", npz(images=pictures, labels=npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-2,), }\n")), D
    yield "header-code.npz", npz(images=npy_header("{'descr': __import__('os').system('id'), 'shape': ()}"), labels=labels), D
    yield "header-deep.npz", npz(images=npy_header("(" * 9000), labels=labels), D
    yield "header-open-string.npz", npz(images=npy_header("{'''"), labels=labels), D
    yield "header-not-utf8.npz", npz(images=b"\x93NUMPY\x03\0\x04\0\0\0\xff\xff\xff\xff", labels=labels), D
    yield "version-9.npz", npz(images=npy_header("{}", b"\x09\x09"), labels=labels), D
    yield "structured.npz", npz(images=npy(np.zeros(2, dtype=[("a", "u1")])), labels=labels), D
    yield "labels-float.npz", npz(images=pictures, labels=npy(np.zeros(2))), D, "integers"
    yield "labels-short.npz", npz(images=pictures, labels=npy(np.zeros(1, dtype=np.int64))), D
    yield "images-int64.npz", npz(images=npy(_PICTURES.astype(np.int64)), labels=labels), D, "uint8"
    yield "bad-checksum.npz", good.replace(pictures[200:210], b"\0" * 10, 1) if pictures[200:210] in good else good[:100] + b"\0\0\0\0" + good[104:], D


def npy_files() -> Iterator[tuple[Any, ...]]:
    pictures = npy(_PICTURES)
    yield "good.npy", pictures, None
    yield "empty.npy", b"", D
    yield "cut.npy", pictures[:200], D
    yield "pickle.npy", b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.", D
    yield "objects.npy", npy(np.array([{"a": 1}, None], dtype=object), allow_pickle=True), D, "Python objects"
    yield "zip.npy", npz(images=pictures), D
    yield "too-many.npy", npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 8, 8, 3), }\n"), D
    yield "no-images.npy", npy(_PICTURES[:0]), D, "no images"
    yield "six-axes.npy", npy(np.zeros((1, 1, 1, 1, 1, 1), dtype=np.uint8)), D, "shape"
    yield "text.npy", b"hello", D


def class_names() -> Iterator[tuple[Any, ...]]:
    yield "good.txt", "cat\ndog\n", None
    yield "empty.txt", "", D, "no names"
    yield "other.txt", "cat\nbird\n", D, "without a name"
    yield "twice.txt", "cat\nCat\ndog\n", D, "more than once"
    yield "latin1.txt", b"caf\xe9\ndog", D, "cannot read"
    yield "null.txt", b"cat\0\ndog\n", D
    yield "numbers.txt", "1\n2\n", D
    yield "long-number.txt", "9" * 5000 + "\ndog\n", D
    yield "markup.txt", "<script>alert(1)</script>\ndog\n", D


def descriptions() -> Iterator[tuple[Any, ...]]:
    rest = {"dog": "barks", "wild boar": "tusks"}

    def cat(value: Any) -> str:
        return json.dumps({"cat": value, **rest})

    yield "good.json", cat(["purrs", "has whiskers"]), None
    yield "markup.json", cat("<script>alert(1)</script>"), None
    yield "empty.json", "", D, "not valid JSON"
    yield "list.json", "[1]", D, "must be a JSON object"
    yield "number.json", "1", D, "must be a JSON object"
    yield "key-twice.json", '{"cat": "a", "cat": "b"}', D, "there twice"
    yield "two-for-one.json", '{"cat": "a", "CAT": "b", "dog": "c", "wild boar": "d"}', D, "both describe"
    yield "missing.json", '{"cat": "a"}', D, "no description"
    yield "deep.json", "[" * 3_000, D, "not valid JSON"
    yield "deep-object.json", '{"a":' * 3_000, D, "not valid JSON"
    yield "not-utf8.json", b'{"cat": "\xff"}', D
    yield "surrogate.json", cat("\ud800"), D, "surrogate"
    yield "sentence-null.json", cat(None), D, "null"
    yield "sentence-boolean.json", cat(True), D
    yield "sentence-nan.json", '{"cat": NaN, "dog": "b", "wild boar": "c"}', D
    yield "sentence-empty.json", cat("  "), D, "empty"
    yield "sentence-object.json", cat({"a": "b"}), D
    yield "sentence-nested.json", cat([["a"]]), D
    yield "sentences-none.json", cat([]), D, "empty list"
    yield "sentences-same.json", cat(["a b", "A  b"]), D, "same"
    yield "long-key.json", json.dumps({"x" * 5_000: "a"}), D, "limit"
    yield "many-keys.json", json.dumps({str(i): "" for i in range(3_000)}), D
    yield "long-number.json", '{"cat": ' + "9" * 5000 + "}", D
    yield "cut.json", cat("purrs")[:-5], D, "not valid JSON"


def journals() -> Iterator[tuple[Any, ...]]:
    entry = {"study_id": STUDY_ID, "number": 0, "digest": "d", "state": "complete", "score": 0.5, "reports": [[1, 0.5]], "details": {}, "values": [0.5]}

    def line(**changes: Any) -> str:
        return json.dumps(entry | changes) + "\n"

    yield "good.jsonl", line() + line(number=1), None
    yield "empty.jsonl", "", None
    yield "torn.jsonl", line() + line(number=1)[:-20], None
    yield "torn-only.jsonl", "{", None
    yield "other-study.jsonl", line(study_id="x"), "StudyConflict", "another study"
    yield "damaged-middle.jsonl", line() + "x\n" + line(number=1), D, "line 2 is damaged"
    yield "empty-line.jsonl", line() + "\n" + line(number=1), D, "line 2"
    yield "list.jsonl", "[]\n", D, "line 1"
    yield "null.jsonl", "null\n", D
    yield "nulls.jsonl", bytes(100) + b"\n", D
    yield "not-utf8.jsonl", b"\xff\xfe\n", D
    yield "deep.jsonl", "[" * 3_000 + "\n", D
    yield "no-reports.jsonl", json.dumps({key: value for key, value in entry.items() if key != "reports"}) + "\n", D
    yield "unknown-key.jsonl", line(x=1), D
    yield "score-nan.jsonl", line().replace("0.5", "NaN", 1), D, "finite"
    yield "score-text.jsonl", line(score="high"), D
    yield "score-boolean.jsonl", line(score=True), D
    yield "values-infinite.jsonl", line(values=[float("inf")]), D
    yield "number-negative.jsonl", line(number=-1), D
    yield "number-text.jsonl", line(number="0"), D
    yield "number-huge.jsonl", line(number=10**30), D
    yield "state-unknown.jsonl", line(state="won"), D
    yield "state-list.jsonl", line(state=[]), D
    yield "reports-flat.jsonl", line(reports=[1, 2]), D
    yield "details-list.jsonl", line(details=[]), D
    yield "unicode-line-end.jsonl", line(digest="a\u2028b"), None


def hyperparameters() -> Iterator[tuple[Any, ...]]:
    good = {"lr": 1e-4, "weight_decay": 0.1, "loss_weights": {"cross_entropy": 1.0}}
    yield "good.json", json.dumps(good), None
    yield "summary.json", json.dumps({"search": {"best_trial": {"hyperparameters": good}}}), None
    for name, text in {
        "empty": "", "list": "[]", "null": "null", "deep": "[" * 3_000, "nothing": "{}", "search-list": '{"search": []}', "search-null": '{"search": null}',
        "final-text": '{"final": "x"}', "best-list": '{"search": {"best_trial": []}}', "chosen-number": '{"final": {"hyperparameters": 3}}',
        "rate-nan": json.dumps(good | {"lr": float("nan")}), "rate-infinite": json.dumps(good | {"lr": float("inf")}), "rate-negative": json.dumps(good | {"lr": -1}),
        "rate-list": json.dumps(good | {"lr": [1]}), "weights-empty": json.dumps(good | {"loss_weights": {}}), "weight-negative": json.dumps(good | {"loss_weights": {"hinge": -1}}),
        "term-unknown": json.dumps(good | {"loss_weights": {"<b>": 1}}), "unknown-field": json.dumps(good | {"learning_rate": 1}), "seed-negative": json.dumps(good | {"seed": -1}),
        "seed-long": json.dumps(good).replace("}}", '}, "seed": ' + "9" * 5000 + "}"), "cut": json.dumps(good)[:-4], "constraint": json.dumps(good | {"constraint": "__import__('os')"}),
    }.items():  # fmt: skip
        yield f"{name}.json", text, C, "--hyperparameters"
    yield "not-utf8.json", b"\xff\xfe{}", C, "--hyperparameters"


def trials_tables() -> Iterator[tuple[Any, ...]]:
    yield "good.csv", "number,state,score\n0,COMPLETE,0.5\n", None
    yield "empty.csv", "", None
    yield "no-columns.csv", "a,b\n1,2\n", A
    yield "number-text.csv", "number,state,score\nx,COMPLETE,0.5\n", A
    yield "score-text.csv", "number,state,score\n0,COMPLETE,high\n", A
    yield "short-row.csv", "number,state,score\n0\n", A
    yield "not-utf8.csv", b"number,state,score\n0,\xff,1\n", A
    yield "report-text.csv", "number,state,score,report/x\n0,COMPLETE,0.5,0.5\n", A
    yield "long-number.csv", "number,state,score\n" + "9" * 5000 + ",COMPLETE,0.5\n", A
    yield "null.csv", b"number,state,score\n0,\0,1\n", None
    yield "score-nan.csv", "number,state,score\n0,COMPLETE,nan\n", None


def summaries() -> Iterator[tuple[Any, ...]]:
    from tests.report.factory import make_summary, minimal_summary

    good = minimal_summary()
    yield "good.json", json.dumps(good), None
    yield "whole.json", json.dumps(make_summary()), None
    yield "markup.json", json.dumps(good | {"study": "<script>alert(1)</script>", "notes": ['"><img src=x onerror=alert(1)>']}), None
    yield "list.json", "[]", A
    yield "empty.json", "", A
    yield "deep.json", "[" * 3_000, A
    yield "nothing.json", "{}", A
    yield "search-list.json", json.dumps(good | {"search": []}), A
    yield "evaluations-number.json", json.dumps(good | {"evaluations": 3}), A
    yield "notes-numbers.json", json.dumps(good | {"notes": [1]}), A
    yield "cost-text.json", json.dumps(good | {"cost": "much"}), A
    yield "surrogate.json", json.dumps(good | {"study": "\ud800"}), A
    yield "skipped-list.json", json.dumps(good | {"description": {"skipped": []}}), A
    yield "skipped-markup.json", json.dumps(good | {"description": {"skipped": {"<b>": {"n": 1, "images": [{"image": "<script>", "reason": "<img>"}]}}}}), None


def comparisons() -> Iterator[tuple[Any, ...]]:
    for name, text in {"empty": "", "list": "[]", "nothing": "{}", "deep": "[" * 3_000, "text": '"x"', "methods": '{"version": 1, "methods": 3}', "nan": '{"version": NaN}'}.items():
        yield f"{name}.json", text, D


def infos() -> Iterator[tuple[Any, ...]]:
    good = {
        "study": "s", "method": "final", "class_keys": ["cat", "dog"], "class_names": ["cat", "dog"], "templates": ["a {}"], "fingerprint": "f", "hyperparameters": {},
    }  # fmt: skip
    yield "good.json", json.dumps(good), None
    for name, changes in {
        "names-number": {"class_names": 5}, "names-text": {"class_names": "ab"}, "names-numbers": {"class_names": [1, 2]}, "names-null": {"class_names": None},
        "names-object": {"class_names": {"a": 1, "b": 2}}, "names-short": {"class_names": ["cat"]}, "names-three": {"class_names": ["a", "b", "c"], "class_keys": ["a", "b", "c"]},
        "study-list": {"study": []}, "scores-text": {"scores": {"val_id": "high"}}, "beta-without-head": {"core_beta": 0.5}, "beta-text": {"core_beta": "x"},
        "hyperparameters-list": {"hyperparameters": []}, "unknown": {"x": 1}, "alpha-object": {"alpha": {}},
    }.items():  # fmt: skip
        yield f"{name}.json", json.dumps(good | changes), M
    for name, text in {"empty": "", "list": "[]", "null": "null", "deep": "[" * 3_000, "nothing": "{}", "pickle": "\x80\x04]."}.items():
        yield f"{name}.json", text, M
    yield "not-utf8.json", b"\xff\xfe", M


def tensors(document: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with a header of any kind."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _safetensors(names: tuple[str, ...], shape: list[int]) -> Iterator[tuple[str, bytes]]:
    size = 4 * int(np.prod(shape))
    name = names[0]

    def entry(**changes: Any) -> dict[str, Any]:
        return {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]} | changes}

    yield "empty", b""
    yield "seven-bytes", bytes(7)
    yield "length-huge", tensors(entry(), bytes(size), length=2**63)
    yield "length-beyond", tensors(entry(), bytes(size), length=10**6)
    yield "length-zero", tensors(b"", length=0)
    yield "header-cut", tensors(entry(), bytes(size))[:20]
    yield "header-not-json", tensors(b"{" * 100)
    yield "header-not-utf8", tensors(b"\xff" * 64)
    yield "header-deep", tensors(b"[" * 4_000)
    yield "header-list", tensors([])
    yield "body-cut", tensors(entry(), bytes(size - 1))
    yield "body-long", tensors(entry(), bytes(size + 1))
    yield "offsets-reversed", tensors(entry(data_offsets=[size, 0]), bytes(size))
    yield "offsets-negative", tensors(entry(data_offsets=[-1, size - 1]), bytes(size))
    yield "offsets-huge", tensors(entry(data_offsets=[0, 2**64 - 1]), bytes(size))
    yield "offsets-overlap", tensors(entry() | {"other": entry()[name]}, bytes(size))
    yield "shape-wrong", tensors(entry(shape=[10**6, 10**6]), bytes(size))
    yield "shape-overflow", tensors(entry(shape=[2**32, 2**32, 2**32]), bytes(size))
    yield "shape-negative", tensors(entry(shape=[-4]), bytes(size))
    yield "dtype-unknown", tensors(entry(dtype="PY"), bytes(size))
    yield "metadata-number", tensors(entry() | {"__metadata__": {"format": 3}}, bytes(size))
    yield "key-twice", tensors(json.dumps(entry())[:-1].encode() + b", " + json.dumps(entry()).encode()[1:], bytes(size))
    yield "pickle", b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."
    yield "zip", b"PK\x03\x04" + bytes(200)
    yield "name-only", tensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))


def heads() -> Iterator[tuple[Any, ...]]:
    yield from ((f"{name}.safetensors", data, M) for name, data in _safetensors(("weight", "bias"), [2, 4]))

    def head(kind: str, each: int, body: bytes) -> bytes:
        return tensors(
            {"weight": {"dtype": kind, "shape": [2, 4], "data_offsets": [0, 8 * each]}, "bias": {"dtype": kind, "shape": [2], "data_offsets": [8 * each, 10 * each]}}, body
        )

    yield "good.safetensors", head("F32", 4, bytes(40)), None
    yield "integers.safetensors", head("I64", 8, bytes(80)), M, "finite"
    yield "booleans.safetensors", head("BOOL", 1, bytes(10)), M, "finite"
    yield "nan.safetensors", head("F32", 4, struct.pack("<f", float("nan")) * 10), M, "finite"
    yield "infinite.safetensors", head("F32", 4, struct.pack("<f", float("inf")) * 10), M, "finite"


def weights() -> Iterator[tuple[Any, ...]]:
    kept = ("empty", "length-huge", "header-not-json", "body-cut", "offsets-overlap", "shape-wrong", "pickle", "zip", "name-only")
    yield from ((f"{name}.safetensors", data, M) for name, data in _safetensors(("logit_scale",), [1]) if name in kept)


def configs() -> Iterator[tuple[Any, ...]]:
    from tests.fuzz.targets import SMALLEST
    from tests.studies import PIXELS

    pixels = {**PIXELS, "size": [3, 8, 8], "mode": "RGB"}

    def config(vision: Any = None, text: Any = None, preprocess: Any = None, **more: Any) -> str:
        small: Any = json.loads(json.dumps(SMALLEST))
        model = {**small, "vision_cfg": {**small["vision_cfg"], **(vision or {})}, "text_cfg": {**small["text_cfg"], **(text or {})}, **more}
        return json.dumps({"model_cfg": model, "preprocess_cfg": {**pixels, **(preprocess or {})}})

    yield "good.json", config(), None
    yield "size-of-the-model-counts.json", config(preprocess={"size": [3, 10**6, 10**6]}), None
    for name, text in {
        "empty": "", "list": "[]", "null": "null", "deep": "[" * 3_000, "nothing": "{}", "model-list": '{"model_cfg": []}', "vision-text": '{"model_cfg": {"vision_cfg": "x", "text_cfg": {}}}',
        "layers-bomb": config({"layers": 10**9}), "width-bomb": config({"width": 10**6, "layers": 1}), "width-and-layers": config({"width": 4096, "layers": 900}),
        "vocabulary-bomb": config(text={"vocab_size": 10**9}), "context-bomb": config(text={"context_length": 10**6}), "image-bomb": config({"image_size": 10**6}),
        "embedding-bomb": config(embed_dim=10**9), "resnet-bomb": config({"layers": [10**6, 1, 1, 1]}), "layers-negative": config({"layers": -1}), "layers-text": config({"layers": "x"}),
        "patch-zero": config({"patch_size": 0}), "unknown-key": config({"x": 1}), "timm-unknown": config({"timm_model_name": "no_such_model"}),
        "mean-nan": config(preprocess={"mean": [float("nan")] * 3}), "mean-short": config(preprocess={"mean": [0.5]}), "std-zero": config(preprocess={"std": [0, 1, 1]}),
        "std-text": config(preprocess={"std": "x"}), "interpolation": config(preprocess={"interpolation": "random"}), "resize-mode": config(preprocess={"resize_mode": "melt"}),
        "other-width": config(text={"width": 8, "heads": 1}),
    }.items():  # fmt: skip
        yield f"{name}.json", text, M
    yield "not-utf8.json", b"\xff\xfe", M


def deltas() -> Iterator[tuple[Any, ...]]:
    yield from ((f"{name}.safetensors", data, M) for name, data in _safetensors(("whole/a",), [4, 4]))


# What a fuzzer found, under found/: (file, error class or None).
FOUND: tuple[tuple[str, str | None], ...] = ()


def main() -> int:
    """Write the corpus and its manifest."""
    manifest: dict[str, dict[str, str | None]] = {}
    for case in cases():
        path = CORPUS / case.target / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.data)
        manifest[f"{case.target}/{case.name}"] = {"error": case.error, "says": case.says}
    for name, error in FOUND:
        manifest[f"found/{name}"] = {"error": error, "says": ""}
    (CORPUS / "manifest.json").write_text(json.dumps(manifest, indent=0) + "\n", encoding="utf-8")
    for path in sorted(path for path in CORPUS.rglob("*") if path.is_file()):
        name = path.relative_to(CORPUS).as_posix()
        if name not in manifest and name != "manifest.json":
            sys.stdout.write(f"not in the manifest: {name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
