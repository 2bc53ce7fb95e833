"""Follows TensorRT's names through a source file and holds them to recorded bindings.

A small type checker. It knows three things: the name `trt` is the module; what the records
say each class, method and property is; and the annotations of the file. From these it infers
the type of every expression, and it reports each use of TensorRT that not every recorded
version supports. What it cannot follow it refuses, so that nothing goes unchecked:

* the module is called `trt` and nothing else, and is not passed to `getattr`;
* `Any` is not used in an annotation;
* an object that came out of TensorRT by a way this checker does not know, or an object of
  unknown type whose attribute has the name of a TensorRT member, must be annotated.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RECORDS = Path(__file__).parent / "tensorrt_record"

# Members that lists, NumPy arrays, streams and our own classes have as well: an object of
# unknown type may use them.
COMMON = _words(
    """append clear close code copy data dtype extend file flags func get insert is_open items keys
    line log name nbytes node pop remove reset shape size type update value values write"""
)
# Gone before the oldest recorded version, so no record can tell them from our own names.
GONE = _words(
    """get_binding_name get_binding_index get_binding_shape get_binding_dtype binding_is_input
    num_bindings execute_async execute_async_v2 execute_v2 set_binding_shape max_workspace_size
    build_cuda_engine build_engine max_batch_size int8_calibrator"""
)
# Builtins that read TensorRT objects and keep none.
READERS = {"bool", "bytes", "float", "id", "int", "isinstance", "len", "list", "print", "repr"}
READERS |= {"str", "tuple"}


@dataclass(frozen=True)
class Type:
    """What an expression is: `kind` is module, class, object, enum, member, call, list, own, ..."""

    kind: str
    name: str = ""
    of: Type | None = None


PLAIN = Type("plain")
UNKNOWN = Type("unknown")
OPAQUE = Type("opaque")
OWN = Type("own")


def load_records(folder: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """The recorded names by version."""
    records = (json.loads(path.read_text()) for path in sorted(folder.glob("tensorrt-*.json")))
    return {record["version"]: record["names"] for record in records}


def check(source: str, records: Mapping[str, Mapping[str, Any]], filename: str = "") -> list[str]:
    """Check one file.

    Args:
        source: Python source.
        records: From `load_records`.
        filename: For the messages.

    Returns:
        One line for each fault, such as
        "engine.py:12: BuilderFlag.FP16 is not in TensorRT 11.4.0.106".
    """
    return sorted(
        {
            f"{filename}:{line}: {text}"
            for version, names in records.items()
            for line, text in _Checker(ast.parse(source), version, names).faults
        }
    )


@dataclass
class _Checker:
    tree: ast.Module
    version: str
    names: Mapping[str, Any]
    faults: list[tuple[int, str]] = field(default_factory=list)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    fields: dict[str, Type] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        members = (entry.get("members", {}) for entry in self.names.values())
        self.members = {name for entry in members for name in entry} - COMMON
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("aeseg_edge."):
                self.own |= {alias.name for alias in node.names if alias.name[0].isupper()}
            self._conventions(node)
        # Twice: a field may be read above the method that assigns it.
        for _ in range(2):
            self.faults = [fault for fault in self.faults if fault[1].startswith("convention")]
            self._body(self.tree.body, {"trt": Type("module")})

    def fault(self, node: ast.AST, text: str) -> Type:
        self.faults.append((getattr(node, "lineno", 0), text))
        return PLAIN

    def missing(self, node: ast.AST, what: str) -> Type:
        return self.fault(node, f"{what} is not in TensorRT {self.version}")

    # Conventions -------------------------------------------------------------------------------

    def _conventions(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                module = alias.name if isinstance(node, ast.Import) else f"{node.module}"
                if re.match(r"tensorrt\b", module) and (alias.asname or alias.name) != "trt":
                    self.fault(node, "convention: import TensorRT as trt")
        if isinstance(node, ast.Name) and node.id == "Any":
            self.fault(node, "convention: Any hides what an object is")
        if isinstance(node, ast.arg) and node.annotation is not None:
            text = ast.unparse(node.annotation)
            if "ModuleType" in text and node.arg != "trt":
                self.fault(node, "convention: a module that may be TensorRT is called trt")
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            callee = ast.unparse(node.value.func)
            if callee.endswith(("import_module", "load_tensorrt")):
                for target in node.targets:
                    if ast.unparse(target) != "trt":
                        self.fault(node, "convention: a module that may be TensorRT is called trt")

    # Statements --------------------------------------------------------------------------------

    def _body(self, body: Sequence[ast.stmt], scope: dict[str, Type]) -> None:
        for statement in body:
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: dict[str, Type]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = dict(scope)
            arguments = node.args
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                inner[argument.arg] = self.annotation(argument.annotation)
                if argument.arg == "trt":
                    inner["trt"] = Type("module")
            self._values([*arguments.defaults, *filter(None, arguments.kw_defaults)], scope)
            self._values(node.decorator_list, scope)
            self._body(node.body, inner)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                self._subclass(node, self.infer(base, scope))
            for member in node.body:
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    self.fields[member.target.id] = self.annotation(member.annotation)
            self._body(node.body, dict(scope))
        elif isinstance(node, ast.AnnAssign):
            declared = self.annotation(node.annotation)
            if node.value is not None:
                given = self.infer(node.value, scope)
                declared = given if declared is UNKNOWN else declared
            self.assign(node.target, declared, scope)
        elif isinstance(node, ast.Assign):
            value = self.infer(node.value, scope)
            if value.kind == "module" and any(ast.unparse(t) != "trt" for t in node.targets):
                self.fault(node, "convention: the module is called trt and nothing else")
            for target in node.targets:
                self.assign(target, value, scope, node.value)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self.assign(node.target, self.element(self.infer(node.iter, scope)), scope)
            self._body([*node.body, *node.orelse], scope)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                value = self.infer(item.context_expr, scope)
                if item.optional_vars is not None:
                    held = OPAQUE if value.kind in {"object", "opaque"} else UNKNOWN
                    self.assign(item.optional_vars, held, scope)
            self._body(node.body, scope)
        else:
            for _, value in ast.iter_fields(node):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.stmt):
                        self._statement(child, scope)
                    elif isinstance(child, ast.expr):
                        self.infer(child, scope)
                    elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                        self._body(child.body, scope)

    def _values(self, nodes: Iterable[ast.expr], scope: dict[str, Type]) -> None:
        for node in nodes:
            self.infer(node, scope)

    def _subclass(self, node: ast.ClassDef, base: Type) -> None:
        if base.kind != "class":
            return
        members = self.names.get(base.name, {}).get("members", {})
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                if method.name not in members:
                    self.missing(method, f"{base.name}.{method.name}")
                else:
                    own = [argument.arg for argument in method.args.args][1:]
                    if not any(
                        len(own) == len(_parameters(signature)[0])
                        for signature in members[method.name]["signatures"]
                    ):
                        self.missing(method, f"{base.name}.{method.name}({', '.join(own)})")

    def assign(
        self, target: ast.expr, value: Type, scope: dict[str, Type], source: ast.expr | None = None
    ) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = Type("module") if target.id == "trt" else value
        elif isinstance(target, ast.Attribute):
            owner = self.infer(target.value, scope)
            if owner.kind == "object":
                member = self.member(owner.name, target.attr)
                if member is None or not member.get("writable"):
                    self.missing(target, f"{owner.name}.{target.attr} (to be set)")
            elif isinstance(target.value, ast.Name) and target.value.id == "self":
                known = self.fields.get(target.attr, UNKNOWN)
                if known.kind in {"unknown", "plain"}:
                    self.fields[target.attr] = value
            else:
                self.attribute(target, owner)
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = source.elts if isinstance(source, ast.Tuple) else None
            for index, item in enumerate(target.elts):
                if value.kind == "tuple":
                    held = value.of or UNKNOWN
                    names = held.name.split("|")
                    part = self.named(names[index]) if index < len(names) else UNKNOWN
                elif parts is not None and index < len(parts):
                    part = self.infer(parts[index], scope)
                else:
                    part = self.element(value)
                self.assign(item, part, scope)
        elif isinstance(target, ast.Subscript):
            self.infer(target.value, scope)
            if value.kind in {"object", "opaque"}:
                self.fault(target, "convention: keep a TensorRT object in an annotated name")

    # Types -------------------------------------------------------------------------------------

    def annotation(self, node: ast.expr | None) -> Type:
        if node is None:
            return UNKNOWN
        text = ast.unparse(node).strip("'\"")
        found = re.fullmatch(r"(?:list|Sequence)\[trt\.([\w.]+)\]", text)
        if found:
            return Type("list", of=self.named(found[1]))
        found = re.fullmatch(r"tuple\[(.*trt\..*)\]", text)
        if found:
            parts = [part.strip() for part in found[1].split(",")]
            return Type("tuple", of=Type("plain", "|".join(parts)))
        text = re.sub(r"\s*\|\s*None$", "", text)
        return self.named(text, node)

    def named(self, text: str, node: ast.AST | None = None) -> Type:
        """The type that an annotation or a recorded signature names."""
        text = re.sub(r"^trt\.", "", text.strip())
        text = re.sub(r"^nv\w+::I?(?=ParserError|OnnxParserFlag)|^nv\w+::", "", text)
        text = re.sub(r"^Optional\[(.*)\]$|\s*\|\s*None$", r"\1", text)
        entry = self.names.get(text)
        if entry is None and "." in text:
            owner, _, inner = text.partition(".")
            if self.member(owner, inner):
                return Type("enum", text)
        if entry is None:
            if node is not None and "trt." in ast.unparse(node):
                return self.missing(node, text)
            if text in {"object", "capsule", ""}:
                return OPAQUE
            if text in self.own:
                return OWN
            return UNKNOWN if node is not None else PLAIN
        return Type("enum" if entry["kind"] == "enum" else "object", text)

    def element(self, value: Type) -> Type:
        if value.kind == "list" and value.of is not None:
            return value.of
        return OPAQUE if value.kind in {"opaque", "object"} else UNKNOWN

    def member(self, owner: str, name: str) -> dict[str, Any] | None:
        members: dict[str, Any] = self.names.get(owner, {}).get("members", {})
        return members.get(name)

    # Expressions -------------------------------------------------------------------------------

    def infer(self, node: ast.expr, scope: dict[str, Type]) -> Type:
        if isinstance(node, ast.Name):
            return scope.get(node.id, UNKNOWN)
        if isinstance(node, ast.Constant):
            return PLAIN
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return self.fields.get(node.attr, UNKNOWN)
            return self.attribute(node, self.infer(node.value, scope))
        if isinstance(node, ast.Call):
            return self.call(node, scope)
        if isinstance(node, ast.IfExp):
            self.infer(node.test, scope)
            return self.either([node.body, node.orelse], scope)
        if isinstance(node, ast.BoolOp):
            return self.either(node.values, scope)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            inner = dict(scope)
            for generator in node.generators:
                self.assign(
                    generator.target, self.element(self.infer(generator.iter, inner)), inner
                )
                self._values(generator.ifs, inner)
            if isinstance(node, ast.DictComp):
                kinds = {self.infer(node.key, inner).kind, self.infer(node.value, inner).kind}
                return OPAQUE if kinds & {"object", "opaque"} else PLAIN
            return Type("list", of=self.infer(node.elt, inner))
        if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
            kinds = [self.infer(item, scope) for item in node.elts]
            same = all(kind == kinds[0] for kind in kinds)
            if same:
                return Type("list", of=kinds[0])
            return OPAQUE if any(k.kind in {"object", "opaque"} for k in kinds) else PLAIN
        if isinstance(node, ast.Subscript):
            self.infer(node.slice, scope)
            return self.element(self.infer(node.value, scope))
        if isinstance(node, ast.Lambda):
            self.infer(node.body, dict(scope))
            return UNKNOWN
        if isinstance(node, ast.NamedExpr):
            value = self.infer(node.value, scope)
            self.assign(node.target, value, scope)
            return value
        kinds = [
            self.infer(child, scope)
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.expr)
        ]
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Compare, ast.JoinedStr)):
            return PLAIN
        return OPAQUE if any(kind.kind in {"object", "opaque"} for kind in kinds) else UNKNOWN

    def either(self, nodes: Sequence[ast.expr], scope: dict[str, Type]) -> Type:
        kinds = [self.infer(node, scope) for node in nodes]
        kinds = [kind for kind in kinds if kind.kind != "plain"] or [PLAIN]
        if all(kind == kinds[0] for kind in kinds):
            return kinds[0]
        return OPAQUE if any(kind.kind in {"object", "opaque"} for kind in kinds) else UNKNOWN

    def attribute(self, node: ast.Attribute, owner: Type) -> Type:
        name = node.attr
        if name.startswith("__"):
            return PLAIN
        if owner.kind == "module":
            entry = self.names.get(name)
            if entry is None:
                return self.missing(node, name)
            kinds = {"enum": "enumclass", "class": "class", "function": "call"}
            return Type(kinds[entry["kind"]], name)
        if owner.kind == "enumclass":
            values = self._enum_values(owner.name)
            if name not in values:
                return self.missing(node, f"{owner.name}.{name}")
            return Type("enum", owner.name)
        if owner.kind == "enum":
            if name not in {"name", "value"}:
                return self.missing(node, f"{owner.name}().{name}")
            return PLAIN
        if owner.kind in {"class", "object"}:
            member = self.member(owner.name, name)
            if member is None:
                return self.missing(node, f"{owner.name}.{name}")
            if member["kind"] == "property":
                return self.named(member["type"])
            if member["kind"] == "enum":
                return Type("enumclass", f"{owner.name}.{name}")
            return Type("member", f"{owner.name}.{name}", Type(owner.kind))
        if owner.kind == "own":
            return owner
        if owner.kind == "opaque":
            return self.fault(node, f"convention: annotate the TensorRT object of .{name}")
        if owner.kind == "unknown" and (name in self.members or name in GONE):
            return self.fault(node, f"convention: annotate the object whose .{name} is used")
        return UNKNOWN

    def _enum_values(self, name: str) -> Mapping[str, int]:
        owner, _, inner = name.partition(".")
        values: Mapping[str, int] = (
            (self.member(owner, inner) or {}).get("values", {})
            if inner
            else self.names[owner]["values"]
        )
        return values

    def call(self, node: ast.Call, scope: dict[str, Type]) -> Type:
        callee = self.infer(node.func, scope)
        arguments = [self.infer(argument, scope) for argument in node.args]
        arguments += [self.infer(keyword.value, scope) for keyword in node.keywords]
        called = ast.unparse(node.func)
        if called == "getattr" and any(a.kind in {"module", "object", "class"} for a in arguments):
            return self.fault(node, "convention: getattr hides a TensorRT name")
        if callee.kind == "class":
            self._fits(node, callee.name, self.member(callee.name, "__init__") or {}, bound=True)
            return Type("object", callee.name)
        if callee.kind == "member":
            owner, _, method = callee.name.partition(".")
            entry = self.member(owner, method) or {}
            bound = callee.of is not None and callee.of.kind == "object"
            self._fits(node, callee.name, entry, bound=bound)
            return self._returned(entry)
        if callee.kind == "call":
            entry = self.names[callee.name]
            self._fits(node, callee.name, entry, bound=False)
            return self._returned(entry)
        if isinstance(node.func, ast.Name) and node.func.id in self.functions:
            return self.annotation(self.functions[node.func.id].returns)
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "self":
            method_node = self.functions.get(node.func.attr)
            return self.annotation(method_node.returns) if method_node is not None else UNKNOWN
        if called == "shared_journal":
            return Type("tuple", of=Type("plain", "Journal|trt.ILogger"))
        if called in READERS:
            inside = arguments[0] if len(arguments) == 1 else PLAIN
            return inside if called in {"tuple", "list"} and inside.kind == "list" else PLAIN
        if any(argument.kind in {"object", "opaque"} for argument in arguments):
            return OPAQUE
        # Classes of this project outside the files that use TensorRT hold none of its objects.
        if called in self.own or callee is OWN:
            return OWN
        return UNKNOWN

    def _returned(self, entry: Mapping[str, Any]) -> Type:
        kinds = {
            self.named(signature.rpartition("-> ")[2])
            for signature in entry.get("signatures", [])
            if "->" in signature
        }
        return kinds.pop() if len(kinds) == 1 else (OPAQUE if kinds else PLAIN)

    def _fits(self, node: ast.Call, name: str, entry: Mapping[str, Any], *, bound: bool) -> None:
        """Whether some recorded overload takes these arguments."""
        signatures = entry.get("signatures", [])
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if not signatures or starred or any(k.arg is None for k in node.keywords):
            return
        given = {keyword.arg for keyword in node.keywords}
        count = len(node.args)
        for signature in signatures:
            parameters, required = _parameters(signature, drop_self=bound)
            named = parameters[count:]
            needed = [p for p in parameters[:required] if p not in parameters[:count]]
            if count <= len(parameters) and given <= set(named) and set(needed) <= given:
                return
        self.missing(node, f"{name}({ast.unparse(node).partition('(')[2]}")


def _parameters(signature: str, *, drop_self: bool = True) -> tuple[list[str], int]:
    """Names of a signature's parameters and how many of them have no default."""
    inside = signature.partition("(")[2].rpartition(") ->")[0] or signature.partition("(")[2][:-1]
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(inside + ","):
        depth += letter in "[(<{"
        depth -= letter in "])>}"
        if letter == "," and depth == 0:
            parts.append(inside[start:index].strip())
            start = index + 1
    parts = [part for part in parts if part and part not in {"*", "/"}]
    if drop_self and parts and re.match(r"self\b|arg0: ", parts[0]):
        parts = parts[1:]
    names = [re.split(r"[:=]", part)[0].strip() for part in parts]
    return names, sum("=" not in part for part in parts)
