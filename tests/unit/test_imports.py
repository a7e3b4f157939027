"""Who may import whom: the borders of the package as a table, read from the syntax of every file.

Imports inside functions count too, except in `cli`, which imports everything late so that `--help` is
instant. ``if TYPE_CHECKING:`` blocks do not count: they are not there at run time.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "skipwise"
ARRAYS = {"numpy"}
MODELS = {"numpy", "torch", "transformers"}
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "pydantic"}


@dataclass(frozen=True)
class May:
    """What a part may import: parts of the package, and libraries besides the standard one."""

    package: set[str] = field(default_factory=set)
    libraries: set[str] = field(default_factory=set)


RULES = {
    "": May(),  # skipwise/__init__.py: the public names, looked up when they are first used
    "__main__": May({"cli"}),
    "errors": May(),
    "config": May({"errors", "files"}, {"pydantic", "yaml"}),
    "files": May({"errors"}),
    "scores": May({"errors", "files"}, {"pydantic"}),
    "environment": May(set(), {"psutil", "torch"}),
    "processes": May({"environment", "errors"}, {"accelerate", "torch"}),
    "data": May(),
    "data.documents": May({"errors"}, {"datasets", "pyarrow", "zstandard"} | ARRAYS),
    "data.token_ids": May({"errors"}, {"datasets", "pyarrow"} | ARRAYS),
    "data.passages": May({"data.documents", "data.token_ids", "errors"}, {"datasets"} | ARRAYS),
    "data.chat": May({"data.skips"}, ARRAYS),
    "data.skips": May(set(), ARRAYS),
    "data.balanced": May({"data.skips"}, ARRAYS),
    "data.cream": May({"data.skips"}, ARRAYS),
    "data.mixture": May({"data.skips"}, ARRAYS),
    "data.samplers": May({"data.balanced", "data.cream", "data.mixture", "data.skips"}),
    "data.rows": May({"data.skips"}, ARRAYS),
    "data.packing": May({"data.passages", "errors"}, ARRAYS),
    "data.blend": May({"data.mixture", "data.rows", "data.skips"}, ARRAYS),
    "data.intervals": May({"data.mixture", "data.skips"}, ARRAYS),
    "data.coverage": May({"data.chat", "data.intervals", "data.mixture", "data.skips"}, ARRAYS),
    "data.until_seen": May({"data.coverage", "data.intervals", "data.mixture", "data.skips"}, ARRAYS),
    "data.stream": May({"data.skips"}, {"torch"} | ARRAYS),
    "data.collate": May({"data.skips"}, {"torch"} | ARRAYS),
    "rope": May({"config", "errors"}, {"huggingface_hub", "transformers"}),
    "models": May({"rope", "errors"}, {"gguf", "safetensors"} | MODELS),
    "models.attention": May({"rope", "errors", "models"}, {"xformers"} | MODELS),
    "models.spm": May({"errors"}, {"tokenizers"}),
    "models.shards": May({"errors", "files"}, {"huggingface_hub", "safetensors", "torch"}),
    "models.convert": May({"errors", "files", "models", "rope"}, {"huggingface_hub"} | MODELS),
    "train": May(
        {"config", "data", "rope", "models", "environment", "errors", "files", "plan", "processes"},
        {"accelerate", "deepspeed", "liger_kernel", "peft", "rich", "safetensors", "torchao"} | MODELS,
    ),
    "export": May({"rope", "files", "errors"}, {"accelerate", "gguf", "peft", "safetensors"} | MODELS),
    "evals": May(
        {"data.documents", "errors", "files", "models", "rope", "scores"}, {"httpx2", "lm_eval"} | MODELS
    ),
    "evals.benchmarks": May(
        {"data.documents", "errors", "evals", "scores"},
        {"datasets", "huggingface_hub", "jinja2", "lm_eval", "yaml"} | MODELS,
    ),
    "report": May({"errors", "files", "scores"}, {"jinja2", "matplotlib", "rich"} | ARRAYS),
    "report.coverage": May(
        {"data.coverage", "data.until_seen", "errors", "report"}, {"matplotlib", "rich"} | ARRAYS
    ),
    "plan": May({"errors"}),
    "demo": May({"config", "errors", "evals", "files", "models"}, MODELS),
    "pipeline": May(
        {
            "config",
            "data",
            "environment",
            "errors",
            "evals",
            "export",
            "files",
            "models",
            "processes",
            "report",
            "rope",
            "scores",
            "train",
        },
        {"yaml"} | MODELS,
    ),
    "pipeline.dry_run": May(
        {"config", "data", "errors", "files", "models", "pipeline", "rope"}, {"tokenizers"} | MODELS
    ),
    "cli": May({"errors"}, {"typer", "rich"}),  # at the top of the file; anything inside functions
}
"""The longest name that fits a module is its rule; a package without one fails. Nobody may import `cli` but
`__main__`, nothing imports `pipeline` but `cli`, late: it is the flow, a second user would be logic."""

NEVER = {
    "data.documents": {"torch", "transformers"},
    "data.token_ids": {"torch", "transformers"},
    "data.passages": {"torch", "transformers"},
    "data.chat": {"torch", "transformers", "datasets"},
    "data.skips": {"torch", "transformers", "datasets", "pydantic"},
    "rope": {"skipwise.data", "skipwise.train", "skipwise.evals"},
    "models": {"skipwise.data", "skipwise.train", "skipwise.evals"},
    "train": {"skipwise.evals", "skipwise.export", "skipwise.cli", "skipwise.pipeline"},
    "export": {"skipwise.train", "skipwise.data"},
    "evals": {"skipwise.train", "skipwise.data.skips"},
    "report": {"torch", "transformers"},
    "plan": {"torch", "transformers", "numpy"},
}
"""What must not be reached by way of other modules of the package either."""


class Imports(ast.NodeVisitor):
    """The absolute names that a file imports: ``now`` with the module itself, ``later`` inside functions."""

    def __init__(self, module: str, is_package: bool) -> None:
        parent = module if is_package else module.rpartition(".")[0]
        self.parents = parent.split(".")
        self.depth = 0
        self.now: set[str] = set()
        self.later: set[str] = set()

    def add(self, name: str) -> None:
        (self.later if self.depth else self.now).add(name)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = [node.module] if node.module else []
        if node.level:
            base = [*self.parents[: len(self.parents) - node.level + 1], *base]
        for alias in node.names:
            self.add(".".join([*base, alias.name]))

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in ("import_module", "__import__"):
            constant = node.args and isinstance(node.args[0], ast.Constant)
            self.add(str(node.args[0].value) if constant else "a computed name")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_function(self, node: ast.AST) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_function  # noqa: N815


def modules_of(source: Path) -> dict[str, Imports]:
    """Every module under ``source`` by its dotted name, with what it imports."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Imports(name, is_package)
        found[name].visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def rule_of(module: str) -> str | None:
    own = module.removeprefix("skipwise").removeprefix(".")
    fitting = [part for part in RULES if own == part or (part and inside(own, part))]
    if own.count(".") and fitting == ["data"]:
        return None  # a new stage of the data path states its own rule
    return max(fitting, key=len, default=None)


def home_of(name: str, modules: dict[str, Imports]) -> str:
    """The module that ``skipwise.a.b`` names, ``b`` being a module or something inside ``a``."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return name


def violations(modules: dict[str, Imports]) -> list[str]:
    """One line for every import that the table does not allow."""
    found = []
    for module, imports in modules.items():
        part = rule_of(module)
        if part is None:
            found.append(f"{module}: has no rule")
            continue
        late = (
            set() if part == "cli" or (part == "" and imports.later == {"a computed name"}) else imports.later
        )
        for name in sorted(imports.now | late):
            top = name.partition(".")[0]
            if top == "skipwise":
                home = home_of(name, modules)
                own = f"skipwise.{part}" if part else "skipwise."
                fine = inside(home, own) or any(
                    inside(home, f"skipwise.{each}") for each in RULES[part].package
                )
            else:
                fine = top in RULES[part].libraries or top in sys.stdlib_module_names
            if not fine:
                found.append(f"{module}: imports {name}")
    return found + reached(modules)


def reached(modules: dict[str, Imports]) -> list[str]:
    """One line for every module that reaches what its part must never reach, whatever the way."""
    found = []
    for module in modules:
        never = NEVER.get(rule_of(module) or "", set())
        seen, to_visit = set(), [module] if never else []
        while to_visit:
            name = to_visit.pop()
            seen.add(name)
            found += [f"{module}: reaches {name}" for bad in never if inside(name, bad)]
            if inside(name, "skipwise"):
                home = home_of(name, modules)
                to_visit += (modules[home].now | modules[home].later | {home}) - seen
    return found


def test_every_import_is_allowed():
    modules = modules_of(SOURCE)
    assert len(modules) > 25
    assert violations(modules) == []


def test_the_table_has_no_rule_for_what_is_not_there():
    names = {name.removeprefix("skipwise").removeprefix(".") for name in modules_of(SOURCE)}
    assert set(RULES) <= names
    assert set(NEVER) <= set(RULES)
    for rule in RULES.values():
        assert rule.package <= names


@pytest.mark.parametrize(
    ("file", "planted", "words"),
    [
        ("data/skips.py", "import torch", "imports torch"),
        ("data/skips.py", "def f():\n    import torch.nn", "imports torch.nn"),
        ("data/skips.py", "f = lambda: __import__('torch')", "imports torch"),
        ("data/passages.py", "from torch import nn", "imports torch.nn"),
        ("data/rows.py", "from skipwise.data import passages", "imports skipwise.data.passages"),
        ("data/collate.py", "from ..rope import extend_rope", "imports skipwise.rope.extend_rope"),
        ("files.py", "from . import config", "imports skipwise.config"),
        ("rope/scaling.py", "from skipwise.data.skips import PoSE", "imports skipwise.data.skips.PoSE"),
        ("train/engine.py", "import skipwise.evals.passkey", "imports skipwise.evals.passkey"),
        ("train/engine.py", "class A:\n    from skipwise.cli import main", "imports skipwise.cli.main"),
        ("export/checkpoint.py", "import skipwise.train", "imports skipwise.train"),
        ("evals/passkey.py", "from skipwise import PoSE", "imports skipwise.PoSE"),
        ("report/page.py", "try:\n    import torch\nexcept ImportError: pass", "imports torch"),
        ("report/page.py", "import importlib\nimportlib.import_module(X)", "imports a computed name"),
        ("demo/run.py", "from skipwise.pipeline import extend", "imports skipwise.pipeline.extend"),
        ("pipeline/run.py", "from skipwise.cli import main", "imports skipwise.cli.main"),
        ("cli/main.py", "import transformers", "imports transformers"),
        ("__init__.py", "from skipwise.rope import extend_rope", "imports skipwise.rope.extend_rope"),
        ("data/new_stage.py", "import numpy", "has no rule"),
        ("another.py", "import numpy", "has no rule"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, planted, words):
    module = f"skipwise.{file}".removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    assert f"{module}: {words}" in violations(modules_of(planted_copy(tmp_path, file, planted)))


@pytest.mark.parametrize(
    ("file", "planted", "line"),
    [
        ("errors.py", "import torch", "skipwise.report.page: reaches torch"),
        ("data/documents.py", "def f():\n    import torch.nn", "skipwise.data.passages: reaches torch.nn"),
        ("errors.py", "import skipwise.data.skips", "skipwise.evals.passkey: reaches skipwise.data.skips"),
    ],
)
def test_a_way_round_is_found(tmp_path, file, planted, line):
    assert line in violations(modules_of(planted_copy(tmp_path, file, planted)))


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("data/skips.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data/skips.py", "import typing\nif typing.TYPE_CHECKING:\n    import torch"),
        ("data/skips.py", "import dataclasses, xml.dom"),
        ("cli/main.py", "def f():\n    import transformers"),
    ],
)
def test_what_is_allowed_is_not_flagged(tmp_path, file, planted):
    assert violations(modules_of(planted_copy(tmp_path, file, planted))) == []


def planted_copy(folder: Path, file: str, planted: str) -> Path:
    """The package's Python files with ``planted`` added to one of them."""
    copy = folder / "skipwise"
    for path in SOURCE.rglob("*.py"):
        there = copy / path.relative_to(SOURCE)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(path.read_bytes())
    with (copy / file).open("a", encoding="utf-8") as text:
        text.write("\n" + planted + "\n")
    return copy


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import skipwise; skipwise.PoSE(3, 7); skipwise.example_rng(0, 0, 0)", HEAVY),
        ("import skipwise.data.coverage, skipwise.data.rows", HEAVY),
        ("import skipwise.cli.main", HEAVY | {"numpy"}),
        ("import skipwise.report", {"torch", "transformers", "matplotlib"}),
    ],
)
def test_light_imports(statement, absent):
    script = f"import sys; sys.path[:0] = {sys.path!r}; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    loaded = set(done.stdout.split())
    assert "skipwise" in loaded
    assert loaded & absent == set()


def test_every_public_name_is_found():
    import skipwise

    for name in skipwise.__all__:
        assert getattr(skipwise, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Pose'"):
        skipwise.Pose  # noqa: B018
