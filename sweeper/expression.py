"""Expressions as data: what `derive`, `exclude` and `--where` may say, and nothing more.

The grammar is Python's, cut down to dotted names, literals, arithmetic, comparisons, logic, the
conditional expression and six functions. Text is parsed once into closures; nothing is ever
handed to `eval`, no attribute of a value is ever read, and no number grows without bound.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sweeper.errors import ExpressionError, nearest

MAX_LENGTH = 2_000
MAX_NESTING = 50
INTEGER_LIMIT = 2**63  # integers stay below it in magnitude, so that every store can hold them
IN_YAML = "in YAML, an expression with a comma, a colon or a # needs quotes around it"
_MAX_DIGITS = 20  # of `round`: rounding an integer to -10**9 digits would never end

Values = Mapping[str, Any]
_Evaluate = Callable[[Values], Any]


@dataclass(frozen=True)
class Expression:
    """A parsed expression: call it with a mapping of dotted names to values.

    A value of None (an option this trial does not have) compares unequal to everything and is
    neither smaller nor larger than anything; `name == None` with a literal None asks for it.
    As in Python, `and` and `or` give one of their operands.
    """

    text: str
    names: frozenset[str]
    where: str = field(repr=False, compare=False)
    _evaluate: _Evaluate = field(repr=False, compare=False)

    def __call__(self, values: Values) -> Any:
        """Evaluate with these values.

        Raises
        ------
        ExpressionError : a name is absent from `values`, an operand has the wrong type, or a
            result is not a finite real number with integers below 2**63.
        """
        return self._evaluate(values)

    def holds(self, values: Values) -> bool:
        """Whether the expression, as a rule, is true for these values; None is not.

        Raises
        ------
        ExpressionError : the result is neither true nor false, or as for a call.
        """
        result = self(values)
        if result is None or isinstance(result, bool):
            return bool(result)
        found = f"`{_cut(self.text)}` is `{_shown(result)}`"
        raise ExpressionError(self.where, found, "true or false is needed")


def parse(text: str, where: str, quoting: str = IN_YAML) -> Expression:
    """Read an expression.

    Parameters
    ----------
    where : the file and key, or the option, that its errors will name.
    quoting : the hint with text that is no expression: how to quote one where it is written.

    Raises
    ------
    ExpressionError : the text is not an expression, or uses what the grammar leaves out.
    """
    compiler = _Compiler(text.strip(), where)
    evaluate = compiler.compile(compiler.tree(quoting), 0)
    return Expression(compiler.text, frozenset(compiler.names), where, evaluate)


class _Operation(NamedTuple):
    symbol: str
    calculate: Callable[..., Any]
    fewest: int = 1
    most: int = 1


def _power(base: float, exponent: float) -> Any:
    """`base ** exponent`, refused before an integer could reach 2**63."""
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent > 0
    if whole and (abs(int(base)).bit_length() - 1) * exponent >= 63:
        raise OverflowError("too large")
    return base**exponent


def _round(value: float, digits: int | None = None) -> float:
    if digits is not None and (not isinstance(digits, int) or abs(digits) > _MAX_DIGITS):
        raise ValueError(f"digits are whole and within ±{_MAX_DIGITS}")
    return round(value, digits)


_OPERATORS: Mapping[type[ast.AST], _Operation] = {
    ast.Add: _Operation("+", operator.add),
    ast.Sub: _Operation("-", operator.sub),
    ast.Mult: _Operation("*", operator.mul),
    ast.Div: _Operation("/", operator.truediv),
    ast.FloorDiv: _Operation("//", operator.floordiv),
    ast.Mod: _Operation("%", operator.mod),
    ast.Pow: _Operation("**", _power),
    ast.UAdd: _Operation("+", operator.pos),
    ast.USub: _Operation("-", operator.neg),
}
_FUNCTIONS = {
    "min": _Operation("min", min, 2, MAX_NESTING),
    "max": _Operation("max", max, 2, MAX_NESTING),
    "abs": _Operation("abs", abs),
    "round": _Operation("round", _round, 1, 2),
    "log": _Operation("log", math.log, 1, 2),
    "sqrt": _Operation("sqrt", math.sqrt),
}
_ORDER: Mapping[type[ast.AST], _Operation] = {
    ast.Lt: _Operation("<", operator.lt),
    ast.LtE: _Operation("<=", operator.le),
    ast.Gt: _Operation(">", operator.gt),
    ast.GtE: _Operation(">=", operator.ge),
}
_BOUNDED = "integers below 2**63, finite floats"
_TOO_DEEP = ("nested too deeply", f"at most {MAX_NESTING} levels")
_CONSTANTS = {"true": True, "false": False, "null": None}

_GRAMMAR = (
    "an expression has dotted names, numbers, strings, lists of these two, `+ - * / // % **`, "
    f"comparisons, `in`, `and or not`, `a if b else c` and {' '.join(_FUNCTIONS)}"
)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_bounded(value: Any) -> bool:
    """Whether a number is real, finite and, if whole, small enough to be stored."""
    if isinstance(value, int):
        return abs(value) < INTEGER_LIMIT
    return isinstance(value, float) and math.isfinite(value)


def _shown(*values: Any) -> str:
    text = ", ".join("…" if type(v) is int and not _is_bounded(v) else repr(v) for v in values)
    return text if len(text) <= 60 else text[:57] + "..."


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


class _Compiler:
    """Turns one expression's text into one closure, and words its errors."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        self.names: set[str] = set()

    def error(self, found: str, allowed: str = "", hint: str = "") -> ExpressionError:
        return ExpressionError(self.where, f"`{_cut(self.text)}`: {found}", allowed, hint)

    def tree(self, quoting: str) -> ast.expr:
        if len(self.text) > MAX_LENGTH:
            raise self.error(f"{len(self.text)} characters", f"at most {MAX_LENGTH}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as an unknown escape in a string
                return ast.parse(self.text, mode="eval").body
        except (MemoryError, RecursionError):
            raise self.error(*_TOO_DEEP) from None
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte, a lone surrogate
            raise self.error("not an expression", _GRAMMAR, quoting) from error

    def compile(self, node: ast.expr, depth: int) -> _Evaluate:
        """The closure of a node, `depth` levels below the top."""
        if depth > MAX_NESTING:
            raise self.error(*_TOO_DEEP)
        if type(node) not in self._NODES:
            raise self._refused(node)
        return self._NODES[type(node)](self, node, depth + 1)

    def _refused(self, node: ast.AST) -> ExpressionError:
        source = ast.get_source_segment(self.text, node) if hasattr(node, "lineno") else None
        shown = f"`{source}`" if source else f"operator {type(node).__name__}"
        return self.error(f"{shown} is not allowed", _GRAMMAR)

    def _constant(self, node: ast.Constant, depth: int) -> _Evaluate:
        value = node.value
        if not (value is None or isinstance(value, (bool, int, float, str))):
            raise self._refused(node)
        if _is_number(value) and not _is_bounded(value):
            raise self.error("a number is too large", _BOUNDED)
        return lambda values: value

    def _name(self, node: ast.Name | ast.Attribute, depth: int) -> _Evaluate:
        name = self._dotted(node)
        if name in _CONSTANTS:
            constant = _CONSTANTS[name]
            return lambda values: constant
        self.names.add(name)

        def evaluate(values: Values) -> Any:
            try:
                return values[name]
            except KeyError:
                quote = f"a string needs quotes: '{name}'" if "." not in name else ""
                hint = nearest(name, values) or quote
                raise self.error(f"unknown name `{name}`", hint=hint) from None

        return evaluate

    def _dotted(self, node: ast.expr) -> str:
        """The dotted name of a chain of attributes, which must start at a name."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            raise self.error(f"`.{parts[-1]}` of a value is not allowed", "only names have dots")
        return ".".join([node.id, *reversed(parts)])

    def _list(self, node: ast.List | ast.Tuple, depth: int) -> _Evaluate:
        outside, self.names = self.names, set()
        items = [self.compile(item, depth) for item in node.elts]
        if self.names:
            raise self.error(f"name `{min(self.names)}` in a list", "lists hold literals only")
        self.names = outside
        constant = [item({}) for item in items]
        return lambda values: constant

    def _binary(self, node: ast.BinOp, depth: int) -> _Evaluate:
        if type(node.op) not in _OPERATORS:
            raise self._refused(node)
        return self._calculation(_OPERATORS[type(node.op)], [node.left, node.right], depth)

    def _unary(self, node: ast.UnaryOp, depth: int) -> _Evaluate:
        if isinstance(node.op, ast.Not):
            operand = self.compile(node.operand, depth)
            return lambda values: not operand(values)
        if type(node.op) not in _OPERATORS:
            raise self._refused(node)
        return self._calculation(_OPERATORS[type(node.op)], [node.operand], depth)

    def _call(self, node: ast.Call, depth: int) -> _Evaluate:
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise self._refused(node)
        function = _FUNCTIONS[node.func.id]
        if not function.fewest <= len(node.args) <= function.most:
            takes = f"`{function.symbol}` takes {function.fewest} to {function.most}"
            raise self.error(f"`{function.symbol}` of {len(node.args)} arguments", takes)
        return self._calculation(function, node.args, depth)

    def _calculation(
        self, operation: _Operation, nodes: Sequence[ast.expr], depth: int
    ) -> _Evaluate:
        inner = [self.compile(node, depth) for node in nodes]
        return lambda values: self._calculate(operation, [operand(values) for operand in inner])

    def _calculate(self, operation: _Operation, operands: list[Any]) -> Any:
        """The finite, bounded number that the operation gives for numbers."""
        symbol = operation.symbol
        for operand in operands:
            if not _is_number(operand):
                takes = f"`{symbol}` takes numbers"
                raise self.error(f"`{_shown(operand)}` is not a number", takes)
        try:
            result = operation.calculate(*operands)
        except (ArithmeticError, ValueError) as error:
            raise self.error(f"`{symbol}` of `{_shown(*operands)}`: {error}") from error
        if not _is_bounded(result):
            found = f"`{symbol}` of `{_shown(*operands)}` is too large or not a real number"
            raise self.error(found, _BOUNDED)
        return result

    def _logic(self, node: ast.BoolOp, depth: int) -> _Evaluate:
        *others, last = [self.compile(item, depth) for item in node.values]
        decisive = isinstance(node.op, ast.Or)

        def evaluate(values: Values) -> Any:
            for operand in others:
                result = operand(values)
                if bool(result) is decisive:
                    return result
            return last(values)

        return evaluate

    def _conditional(self, node: ast.IfExp, depth: int) -> _Evaluate:
        test, body = self.compile(node.test, depth), self.compile(node.body, depth)
        other = self.compile(node.orelse, depth)
        return lambda values: body(values) if test(values) else other(values)

    def _comparison(self, node: ast.Compare, depth: int) -> _Evaluate:
        nodes = [node.left, *node.comparators]
        first, *operands = [self.compile(item, depth) for item in nodes]
        tests = [self._test(op, nodes[i : i + 2]) for i, op in enumerate(node.ops)]
        links = list(zip(tests, operands, strict=True))

        def evaluate(values: Values) -> bool:
            left = first(values)
            for test, operand in links:
                right = operand(values)
                if not test(left, right):
                    return False
                left = right
            return True

        return evaluate

    def _test(self, op: ast.cmpop, sides: Sequence[ast.expr]) -> Callable[[Any, Any], bool]:
        """One link of a chain of comparisons."""
        if isinstance(op, (ast.Eq, ast.NotEq)):
            equal = operator.is_ if any(map(_is_none, sides)) else _equal
            return equal if isinstance(op, ast.Eq) else lambda a, b: not equal(a, b)
        if isinstance(op, (ast.In, ast.NotIn)):
            return lambda a, b: self._contains(b, a) is isinstance(op, ast.In)
        if type(op) not in _ORDER:
            raise self._refused(op)
        order = _ORDER[type(op)]
        return lambda a, b: self._in_order(order, a, b)

    def _in_order(self, order: _Operation, a: Any, b: Any) -> bool:
        if a is None or b is None:
            return False
        strings = isinstance(a, str) and isinstance(b, str)
        if strings or (_is_number(a) and _is_number(b)):
            return bool(order.calculate(a, b))
        compares = f"`{order.symbol}` compares two numbers or two strings"
        raise self.error(f"`{order.symbol}` of `{_shown(a, b)}`", compares)

    def _contains(self, whole: Any, part: Any) -> bool:
        if whole is None or isinstance(whole, (list, tuple)):
            return part in (whole or ())
        if isinstance(whole, str) and isinstance(part, str):
            return part in whole
        looks = "`in` looks for a value in a list, or for a string in a string"
        raise self.error(f"`in` of `{_shown(part, whole)}`", looks)

    _NODES: Mapping[type[ast.expr], Callable[..., _Evaluate]] = {
        ast.Constant: _constant,
        ast.Name: _name,
        ast.Attribute: _name,
        ast.List: _list,
        ast.Tuple: _list,
        ast.BinOp: _binary,
        ast.UnaryOp: _unary,
        ast.Call: _call,
        ast.BoolOp: _logic,
        ast.IfExp: _conditional,
        ast.Compare: _comparison,
    }


def _is_none(node: ast.expr) -> bool:
    """Whether the node is a literal None."""
    constant = isinstance(node, ast.Constant) and node.value is None
    return constant or (isinstance(node, ast.Name) and node.id == "null")


def _equal(a: Any, b: Any) -> bool:
    return a is not None and b is not None and bool(a == b)
