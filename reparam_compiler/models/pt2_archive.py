"""What may be in a .pt2 file that nobody vouches for: it is looked through before torch opens it.

    allowed   raw tensors, example inputs that load with weights_only, a graph of dispatcher operators, text
    refused   every other record: pickles, TorchScript objects, compiled libraries, the archive of torch < 2.8

`torch.export.load` runs code in more places than its pickles: it evaluates size expressions with sympy, and guards with `exec`.
It also resolves operators by any name within torch, imports what a tree spec names, and writes names into Python source. So the
graph's JSON is read here first, key by key. Checked against torch 2.13, `torch/_export/serde/serialize.py`.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import UnsupportedModelError, first_line

MODEL = re.compile(r"models/(?P<name>[\w-]+)\.json")
SAMPLES = re.compile(r"data/sample_inputs/[\w-]+\.pt")
PAYLOADS = re.compile(r"data/(weights|constants)/[\w-]+_config\.json")
HARMLESS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|extra/.*|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(?!from_file)_?[a-zA-Z]\w*\.[a-zA-Z]\w*"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|lshift|rshift)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.(sym_\w+|_sym_\w+)"
)
ARITHMETIC = frozenset(
    re.findall(
        r"\w+",
        """Symbol Integer Float Rational Add Mul Pow Abs Max Min Mod floor ceiling max min abs
        Eq Ne Lt Le Gt Ge And Or Not Equality Unequality GreaterThan LessThan StrictGreaterThan StrictLessThan
        FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow
        FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat
        Identity""",
    )
)
"""What an expression over sizes may call."""
SIZES = frozenset({"size", "stride", "dim", "numel", "storage_offset", "ndim", "shape"})
TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.Size")
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Name, ast.Constant,
    ast.Subscript, ast.Attribute, ast.Tuple, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_NUMBERS = frozenset({"as_int", "as_bool", "as_float", "as_none", "min_val", "max_val", "real", "imag"})


def check(data: bytes, file: str) -> None:
    """Looks through an archive.

    Args:
        data: the whole of it.
        file: its name, for messages.

    Raises:
        UnsupportedModelError: it holds what could run code when torch loads it; the message names the record.
    """
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))  # the reader that torch.export.load uses
        records = [str(name) for name in reader.get_all_records()]
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (RuntimeError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise UnsupportedModelError(f"{file}: found no archive of torch.export.save ({first_line(error)})") from error
    listed = sorted(member.filename.partition("/")[2] for member in members)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(m.file_size for m in members) > len(data):
        raise refusal(file, "the archive", "its records take more than the file, which torch writes without compression")
    if listed != sorted(records) or len({name.lower() for name in records}) < len(records):
        raise refusal(file, "the archive", "its two lists of records differ, or it has one record twice")
    for record in records:
        _check_record(reader, file, record)


def _check_record(reader: Any, file: str, record: str) -> None:
    """Raises UnsupportedModelError where torch cannot read a record, or loading it could run code."""
    if MODEL.fullmatch(record):
        _Graph(file, record).look(_json(_content(reader, file, record), file, record), "")
    elif SAMPLES.fullmatch(record):
        _check_samples(_content(reader, file, record), file, record)
    elif PAYLOADS.fullmatch(record):
        _check_payloads(_json(_content(reader, file, record), file, record), file, record)
    elif not HARMLESS.fullmatch(record):
        raise refusal(file, record, "it is no raw tensor, and torch could run code to load it")


def _content(reader: Any, file: str, record: str) -> bytes:
    try:
        content: bytes = reader.get_record(record)
    except RuntimeError as error:
        raise UnsupportedModelError(f"{file}: its record {record!r} cannot be read ({first_line(error)})") from error
    return content


def refusal(file: str, record: str, why: str) -> UnsupportedModelError:
    """The error of an archive that must not be opened."""
    return UnsupportedModelError(
        f"{file}: refused for its record {record!r}: {why}. Where you trust whoever made the file, load it with "
        f"{in_words_of(python='load_model(..., unsafe=True)', command='--unsafe-load')}; else export the model anew"
    )


def _json(data: bytes, file: str, record: str) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise refusal(file, record, f"it is no JSON ({first_line(error)})") from error


def _check_samples(data: bytes, file: str, record: str) -> None:
    """Example inputs are a pickle, which torch loads in full where a load of weights only fails."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # whatever stops it, the full unpickler would run next
        raise refusal(file, record, "it is a pickle that holds more than tensors and plain containers") from error


def _check_payloads(config: Any, file: str, record: str) -> None:
    """Tensors must be raw bytes, in a record of their own kind."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise refusal(file, record, "it lists no tensors")
    for name, entry in entries.items():
        path = str(entry.get("path_name")) if isinstance(entry, dict) else ""
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise refusal(file, f"{record.rpartition('/')[0]}/{path}", f"{name} is stored there as a pickle")
        if not re.fullmatch(r"(weight|tensor)_\d+", path):
            raise refusal(file, f"{record.rpartition('/')[0]}/{path}", f"{name} is an object there, not a raw tensor")


class _Graph:
    """The rules for the values of a graph's JSON, by their keys."""

    def __init__(self, file: str, record: str) -> None:
        self.file, self.record = file, record
        named = dict.fromkeys(("name", "as_name", "user_input_name", "forward_arg_names", "field_names"), self._identifier)
        dotted = ("parameter_name", "buffer_name", "tensor_constant_name", "fqn", "as_string", "as_strings", "torch_version")
        self.rules: dict[str, Callable[[str], bool]] = {
            **named,
            **dict.fromkeys(dotted, self._quotable),
            **dict.fromkeys(("expr_str", "guards_code"), self._arithmetic),
            **dict.fromkeys(("target", "as_operator"), self._operator),
            **dict.fromkeys(("in_spec", "out_spec"), self._tree),
        }

    def look(self, value: Any, key: str) -> None:
        """Refuses a value that could run code; `key` is that of the dict it is in, also through lists."""
        if isinstance(value, dict):
            if key in self.rules or key in _NUMBERS:
                self._refuse(key, value)
            for name, child in value.items():
                if not re.fullmatch(r"[\w.]*", name) or name in ("as_custom_obj", "custom_obj"):
                    self._refuse(key, name)
                if name != "metadata" or not self._is_notes(child):
                    self.look(child, name)
        elif isinstance(value, list):
            for child in value:
                self.look(child, key)
        elif isinstance(value, str):
            special = value in ("Infinity", "-Infinity", "NaN")
            if not special and (key in _NUMBERS or not self.rules.get(key, self._word)(value)):
                self._refuse(key, value)
        elif value is not None and key in self.rules:
            self._refuse(key, value)

    def _refuse(self, key: str, value: object) -> NoReturn:
        found = f"{key or 'the root'} is {repr(value)[:120]}"
        raise refusal(self.file, self.record, f"{found}, which is not what torch.export writes for a model")

    @staticmethod
    def _is_notes(value: Any) -> bool:
        """Stack traces and the like: torch keeps them as text."""
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())

    @staticmethod
    def _word(value: str) -> bool:
        return re.fullmatch(r"[\w.]*", value) is not None

    @staticmethod
    def _identifier(value: str) -> bool:
        return not value or value.isidentifier()

    @staticmethod
    def _quotable(value: str) -> bool:
        return value.isprintable() and not set(value) & set("'\"\\")

    @staticmethod
    def _operator(value: str) -> bool:
        return OPERATOR.fullmatch(value) is not None

    @staticmethod
    def _arithmetic(value: str) -> bool:
        if not value.isascii() or not value.isprintable():
            return False
        try:
            nodes = list(ast.walk(ast.parse(value, mode="eval")))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return all(isinstance(node, _NODES) and _is_arithmetic(node) for node in nodes)

    @classmethod
    def _tree(cls, value: str) -> bool:
        try:
            _, root = json.loads(value)
            return _is_plain_tree(root)
        except (ValueError, TypeError, KeyError, RecursionError):
            return False


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in ARITHMETIC
        case ast.Call(func=func):
            return isinstance(func, ast.Attribute)
        case ast.Attribute(value=ast.Name(id="math"), attr=name):
            return not name.startswith("_")
        case ast.Attribute(attr=name):
            return name in SIZES
        case ast.Constant(value=str() as text):
            return text.isidentifier() or re.fullmatch(r"[-+.\de]+", text) is not None
        case ast.Name(id=name):
            return not name.startswith("__")
    return True


def _is_plain_tree(spec: Any) -> bool:
    """A tree of tuples, lists and dicts, whose keys are words."""
    context = None if spec["context"] is None else json.loads(spec["context"])
    keys = context if isinstance(context, list) else [] if context is None else [context]
    words = all(isinstance(key, int) or (isinstance(key, str) and key.isidentifier()) for key in keys)
    return spec["type"] in TREES and words and all(map(_is_plain_tree, spec["children_spec"]))
