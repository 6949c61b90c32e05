"""What the packages never do, whatever they are given: read from their syntax trees, so that a new file cannot forget it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("autoft", "workers", "storage")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
# The one place that may name a loader: a subclass of the safe one.
YAML_LOADER = ("autoft/config/yaml_text.py", "_Loader")
# SQL made of a parameter of a private function: every call of it must pass a literal, which is checked.
LITERAL_CALLERS = {("storage/records/check.py", "_has"): 1}
MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "xml", "lxml", "xmlrpc", "telnetlib", "ftplib", "code", "pty")
# `pickle` for the name of an error that PyTorch raises when it refuses to unpickle.
MODULES_ALLOWED = {("autoft/models/load.py", "pickle")}
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "shutil.unpack_archive", "tempfile.mktemp", "torch.jit.load", "torch.hub.load"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "torch.package.PackageImporter", "asyncio.create_subprocess_shell"),
}
METHODS = {"extractall", "extract", "read_pickle", "to_pickle"}


def mistakes(source: str, file: str) -> Iterator[str]:
    """What a module does that none may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in MODULES and (file, name) not in MODULES_ALLOWED)
        elif isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {mistake}" for mistake in _call(node, file))


def _call(node: ast.Call, file: str) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in FORBIDDEN or name.rpartition(".")[2] in METHODS:
        yield f"calls {name}"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        yield "np.load without allow_pickle=False"
    if name == "yaml.load" and (file, ast.unparse(node.args[1]) if len(node.args) > 1 else "") != YAML_LOADER:
        yield "yaml.load with a loader of its own"
    if name == "yaml.safe_load" and file.startswith("autoft/config/"):
        yield "yaml.safe_load where parse_yaml has limits"
    if given.get("shell", "False") != "False":
        yield "a shell"
    if given.get("trust_remote_code", "False") != "False" or given.get("weights_only", "True") != "True" or given.get("allow_pickle", "False") != "False":
        yield f"{name} that trusts what it reads"
    if name.endswith("Environment") and "jinja" not in name and given.get("autoescape") != "True":
        yield "a jinja2 environment without autoescape=True"


def sql_mistakes(source: str, file: str) -> Iterator[str]:
    """Texts put together that go to a database: values go in as bound parameters only."""
    tree = ast.parse(source)
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper()
    }
    inside: dict[int, str] = {
        id(child): function.name for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for child in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in ("execute", "executemany", "executescript", "exec_driver_sql", "text", "scalar", "scalars", "mogrify", "DDL", "literal_column"):
            allowed = (file, inside.get(id(node), "")) in LITERAL_CALLERS
            if not allowed and _is_put_together(node.args[0], constants):
                yield f"line {node.lineno}: {ast.unparse(node.args[0])[:80]}"


def _is_put_together(text: ast.expr, constants: set[str]) -> bool:
    if isinstance(text, ast.JoinedStr):
        parts = [part.value for part in text.values if isinstance(part, ast.FormattedValue)]
        return any(not (isinstance(part, ast.Name) and part.id in constants) for part in parts)
    if isinstance(text, ast.BinOp):
        return not all(isinstance(side, ast.Constant) or (isinstance(side, ast.Name) and side.id in constants) for side in (text.left, text.right))
    return isinstance(text, ast.Call) and ast.unparse(text.func).rpartition(".")[2] in ("format", "join", "replace", "format_map")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_unsafe_call(path: Path) -> None:
    assert list(mistakes(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())) == []


@pytest.mark.parametrize("path", [path for path in FILES if "storage" in path.parts], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_values_go_to_the_database_as_bound_parameters(path: Path) -> None:
    assert list(sql_mistakes(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())) == []


@pytest.mark.parametrize(("file", "function"), LITERAL_CALLERS)
def test_sql_made_of_a_parameter_has_callers_with_literals_only(file: str, function: str) -> None:
    position = LITERAL_CALLERS[file, function]
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == function]
    assert calls
    assert all(isinstance(node.args[position], ast.Constant) for node in calls)


def test_templates_mark_nothing_as_safe() -> None:
    """A figure's SVG is the only markup that does not come from a template; see `autoft.report.figures.svg`."""
    templates = [path for package in PACKAGES for path in (ROOT / package).rglob("*.j2")]
    assert len(templates) >= 4
    for path in templates:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape\s+false|<script|\son[a-z]+=|javascript:", text), path
        assert not re.search(r"=\{\{", text), f"{path}: an attribute without quotation marks"
        assert not re.search(r"(href|src)=\"[^\"]*\{\{", text), f"{path}: an address made of a value"
    marked = {path.relative_to(ROOT).as_posix() for path in FILES if "Markup(" in path.read_text(encoding="utf-8")}
    assert marked == {"autoft/report/page.py", "autoft/comparison/page.py"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from xml.etree import ElementTree",
        "eval(text)",
        "os.system('ls')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "tar.extractall(folder)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "Environment(loader=loader)",
    ],
)
def test_each_of_them_would_be_seen(source: str) -> None:
    assert list(mistakes(source, "autoft/x.py"))


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ('c.execute(f"SELECT {name}")', True),
        ('c.execute("SELECT %s" % name)', True),
        ('c.execute("SELECT " + name)', True),
        ('c.execute("SELECT {}".format(name))', True),
        ('c.execute(text(f"SELECT {name}"))', True),
        ('NAME = "x"\nc.execute(f"SELECT {NAME}")', False),
        ('c.execute("SELECT %s", (name,))', False),
        ("c.execute(select(table).where(table.c.name == name))", False),
    ],
)
def test_put_together_sql_would_be_seen(source: str, seen: bool) -> None:
    assert bool(list(sql_mistakes(source, "storage/x.py"))) == seen
