"""What can be changed in a source file, one small fault at a time, and which of these changes a seed draws.

Not changed: docstrings, annotations, imports, what is there for type checkers, texts, log calls, messages of errors,
what only guards the author (options of `dataclass`, `strict` of `zip`, `stacklevel`, `encoding`), and the only
assignment of a name, which no test that comes by can miss.
"""

from __future__ import annotations

import ast
import io
import random
import tokenize
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("conclugen", "shards", "ray_jobs", "tuning")

_Operators = Mapping[type, Sequence[type]]
_COMPARISONS: _Operators = {
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Lt: [ast.GtE],
    ast.GtE: [ast.Lt],
    ast.Gt: [ast.LtE],
    ast.LtE: [ast.Gt],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}
_BOUNDARIES: _Operators = {ast.Lt: [ast.LtE], ast.LtE: [ast.Lt], ast.Gt: [ast.GtE], ast.GtE: [ast.Gt]}
_ARITHMETIC: _Operators = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.Mult],
    ast.Pow: [ast.Mult],
    ast.MatMult: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
}
_OPPOSITES = [("min", "max"), ("any", "all"), ("argmin", "argmax"), ("minimum", "maximum"), ("amin", "amax")]
_OPPOSITES += [("floor", "ceil")]
_OPPOSITE = dict(_OPPOSITES) | {b: a for a, b in _OPPOSITES}
_LOGS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
_GUARDS = {"strict", "stacklevel", "encoding", "frozen", "slots", "kw_only", "help", "description"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file. start, end: the bytes that `after` takes the place of; statement: line of the smallest
    statement around it; at_import: that statement runs when the module is imported."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    before: str
    after: str
    statement: int
    at_import: bool

    @property
    def package(self) -> str:
        return self.file.split("/", 1)[0]

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


class _Finder:
    """Walks one module. functions, statements: those around a node; lines: for each line, its kinds of change; found:
    the changes of the lines that are wanted, which are made into text for these alone."""

    def __init__(self, file: str, text: str, wanted: Collection[int] = ()) -> None:
        self.wanted = wanted
        self.lines: dict[int, set[str]] = {}
        self.file, self.source = file, text.encode()
        self.begins = [0]
        for line in self.source.splitlines(keepends=True):
            self.begins.append(self.begins[-1] + len(line))
        self.functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = []
        self.statements: list[ast.stmt] = []
        self.found: list[Mutant] = []
        self.walk(ast.parse(text))

    def add(self, kind: str, node: ast.expr | ast.stmt, after: ast.AST | str) -> None:
        self.lines.setdefault(node.lineno, set()).add(kind)
        if node.lineno not in self.wanted:
            return
        start = self.begins[node.lineno - 1] + node.col_offset
        end = self.begins[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        if isinstance(after, str):
            text = after
        else:
            text = ast.unparse(after) if isinstance(after, ast.stmt) else f"({ast.unparse(after)})"
        statement = self.statements[-1]
        before = " ".join(self.source[start:end].decode().split())
        at_import = not self.functions
        self.found.append(Mutant(self.file, node.lineno, kind, start, end, before, text, statement.lineno, at_import))

    def walk(self, node: ast.AST) -> None:
        if self.is_excluded(node):
            return
        inside = isinstance(node, ast.stmt)
        if inside:
            self.statements.append(node)  # type: ignore[arg-type]
            self.statement(node)
        elif isinstance(node, ast.expr):
            self.expression(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "bases", "type_params", "decorator_list") or isinstance(
                node, ast.Raise
            ):
                continue
            body = name == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if body and not isinstance(node, ast.Lambda):
                self.functions.append(node)  # type: ignore[arg-type]
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.walk(child)
            if body and not isinstance(node, ast.Lambda):
                self.functions.pop()
        if inside:
            self.statements.pop()

    def is_excluded(self, node: ast.AST) -> bool:
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
            return True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return True
        if isinstance(node, ast.Assign) and any(ast.unparse(t) == "__all__" for t in node.targets):
            return True
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(b) for b in node.bases):
            return True
        if isinstance(node, ast.FunctionDef) and any("overload" in ast.unparse(d) for d in node.decorator_list):
            return True
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
        ):
            return node.value.func.attr in _LOGS
        return isinstance(node, ast.keyword) and node.arg in _GUARDS

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If | ast.While | ast.Assert) and not _is_not(node.test):
            self.add("condition negated", node.test, ast.UnaryOp(op=ast.Not(), operand=node.test))
        if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
            self.add("result is None", node, "return None")
            names = [a.arg for a in self.functions[-1].args.args if a.arg not in ("self", "cls")]
            if names and ast.unparse(node.value) != names[0]:
                self.add("result is an argument", node, f"return {names[0]}")
        dropped = isinstance(node, ast.AugAssign | ast.Raise | ast.Break | ast.Continue | ast.Delete)
        dropped |= isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if self.functions and isinstance(node, ast.Assign):
            dropped = not any(map(self.is_only_binding, node.targets))
        if dropped:
            self.add("statement dropped", node, "pass")
        if isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
            for other in _ARITHMETIC[type(node.op)]:
                changed = ast.AugAssign(target=node.target, op=other(), value=node.value)
                self.add("arithmetic", node, changed)

    def is_only_binding(self, target: ast.expr) -> bool:
        """Whether a name would be unknown without this assignment, which any test that comes by notices."""
        if not isinstance(target, ast.Name):
            return isinstance(target, ast.Tuple | ast.List)
        named = [n for n in ast.walk(self.functions[-1]) if isinstance(n, ast.Name) and n.id == target.id]
        arguments = {a.arg for a in ast.walk(self.functions[-1].args) if isinstance(a, ast.arg)}
        return target.id not in arguments and sum(isinstance(n.ctx, ast.Store) for n in named) == 1

    def expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.Compare):
            for kind, operators in (("comparison", _COMPARISONS), ("boundary", _BOUNDARIES)):
                for i, op in enumerate(node.ops):
                    for other in operators.get(type(op), ()):
                        ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
                        self.add(kind, node, ast.Compare(left=node.left, ops=ops, comparators=node.comparators))
        elif isinstance(node, ast.BinOp) and not (_is_text(node.left) or _is_text(node.right)):
            types = isinstance(node.op, ast.BitOr) and not self.functions  # a union of types has the same sign
            for other in () if types else _ARITHMETIC.get(type(node.op), ()):
                self.add("arithmetic", node, ast.BinOp(left=node.left, op=other(), right=node.right))
        elif isinstance(node, ast.BoolOp):
            other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            self.add("and, or", node, ast.BoolOp(op=other_op, values=node.values))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            self.add("not dropped", node, node.operand)
        elif isinstance(node, ast.Constant):
            self.constant(node)
        elif isinstance(node, ast.IfExp) and not _is_not(node.test):
            self.add("condition negated", node.test, ast.UnaryOp(op=ast.Not(), operand=node.test))
        elif isinstance(node, ast.Call):
            self.call(node)

    def constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add("constant", node, repr(not node.value))
        elif isinstance(node.value, int | float):
            self.add("constant", node, repr(node.value + 1))
            self.add("constant", node, f"({node.value - 1!r})")

    def call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _OPPOSITE:
            self.add("min, max, any, all", node.func, _OPPOSITE[node.func.id])
        elif isinstance(node.func, ast.Attribute) and node.func.attr in _OPPOSITE:
            changed = ast.Attribute(value=node.func.value, attr=_OPPOSITE[node.func.attr], ctx=ast.Load())
            self.add("min, max, any, all", node.func, changed)
        for i, keyword in enumerate(node.keywords):
            if keyword.arg is not None and keyword.arg not in _GUARDS and not _is_text(keyword.value):
                rest = [*node.keywords[:i], *node.keywords[i + 1 :]]
                self.add("keyword dropped", node, ast.Call(func=node.func, args=node.args, keywords=rest))


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def mutants_of(file: str, text: str, lines: Collection[int] | None = None) -> list[Mutant]:
    """Every change of some lines of a file (None: of all) that is still Python."""
    wanted = range(1, text.count("\n") + 2) if lines is None else lines
    return [m for m in _Finder(file, text, wanted).found if is_python(m.apply(text.encode()))]


def is_python(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:  # inside an f-string, or what a `del` or a pattern needs
        return False
    return True


def code_lines(text: str) -> int:
    """Lines that hold code: neither blank nor only comment or docstring."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def sources(tree: Path) -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((tree / package).rglob("*.py")):
            yield path.relative_to(tree).as_posix(), path.read_text(encoding="utf-8")


def draw(tree: Path, count: int, seed: int) -> list[Mutant]:
    """Packages get their share of the code lines; each draws lines that can be changed, and one change of each line."""
    texts = dict(sources(tree))
    places: dict[str, list[tuple[str, int]]] = {package: [] for package in PACKAGES}
    sizes = dict.fromkeys(PACKAGES, 0)
    for file, text in texts.items():
        package = file.split("/", 1)[0]
        sizes[package] += code_lines(text)
        places[package] += [(file, line) for line in _Finder(file, text).lines]
    drawn = []
    for package, share in shares(sizes, count).items():
        rng = random.Random(f"{seed} {package}")
        own: list[Mutant] = []
        for file, line in rng.sample(sorted(places[package]), len(places[package])):
            if len(own) == share:
                break
            found = mutants_of(file, texts[file], {line})
            if found:
                kind = rng.choice(sorted({m.kind for m in found}))
                own.append(rng.choice([m for m in found if m.kind == kind]))
        drawn += own
    return drawn


def shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` in proportion to sizes, by largest remainders."""
    exact = {name: count * size / sum(sizes.values()) for name, size in sizes.items()}
    whole = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(sizes, key=lambda name: whole[name] - exact[name])
    for name in by_rest[: count - sum(whole.values())]:
        whole[name] += 1
    return whole
