r"""A small reader of LaTeX arithmetic: text → tree. Bounded in length and depth; `builder.arithmetic` has the values.

Read: + − * / ^, \frac, \sqrt, \binom, |x|, n!, brackets, implied multiplication, \pi, e, i, one-letter variables,
Greek letters, elementary functions. Everything else raises Unreadable: better no opinion than a wrong one.
"""

import re
from typing import Final

from builder.arithmetic import FUNCTIONS, Tree, Unreadable

_MOST_TOKENS: Final = 250  # a chain such as x! ! ! … is as deep as it is long
_DEEPEST: Final = 40

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)|(?P<command>\\[a-zA-Z]+)|(?P<word>[a-zA-Z])"
    r"|(?P<sign>[-+*/^_()\[\]{}|!]))"
)
_INVERSE: Final = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK: Final = re.compile(r"alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi|psi|omega")


def parse_formula(text: str) -> Tree:
    """The formula as a tree. Raises Unreadable."""
    reader = _Reader(_tokens(text))
    tree = reader.sum(0)
    if reader.peek():
        raise Unreadable(f"{reader.peek()!r} is left over")
    return tree


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match or len(tokens) > _MOST_TOKENS:
            raise Unreadable(f"cannot read {text[position : position + 20]!r}")
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


class _Reader:
    """Recursive descent; `depth` counts nesting."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise Unreadable(f"{expected or 'something'} expected, {token!r} found")
        self.position += 1
        return token

    def sum(self, depth: int) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        tree = self.product(depth)
        if negative:
            tree = ("negative", tree)
        while self.peek() in ("+", "-"):
            kind = "plus" if self.take() == "+" else "minus"
            tree = (kind, tree, self.product(depth))
        return tree

    def product(self, depth: int) -> Tree:
        tree = self.power(depth)
        while True:
            token = self.peek()
            if token in ("*", "/"):
                kind = "times" if self.take() == "*" else "over"
                negative = self.peek() == "-" and bool(self.take())
                factor = self.power(depth)
                tree = (kind, tree, ("negative", factor) if negative else factor)
            elif self._begins_factor(token):
                tree = self._implied(tree, depth)
            else:
                return tree

    def _implied(self, tree: Tree, depth: int) -> Tree:
        """A product without a sign. Two numbers side by side are no product; `1\\frac{1}{2}` is a mixed number."""
        previous = self.tokens[self.position - 1]
        token = self.peek()
        if token[0].isdigit() and previous[-1].isdigit():
            raise Unreadable("two numbers side by side")
        mixed = previous.isdigit() and token == "\\frac" and tree[0] == "number"
        factor = self.power(depth)
        if mixed and all(part[0] == "number" for part in factor[1:]):
            return ("plus", tree, factor)
        return ("times", tree, factor)

    def _begins_factor(self, token: str) -> bool:
        return bool(token) and (token[0].isalnum() or token[0] in "\\.([{")

    def power(self, depth: int) -> Tree:
        tree = self.atom(depth + 1)
        while self.peek() == "!":
            self.take()
            tree = ("factorial", tree)
        if self.peek() == "^":
            self.take()
            tree = ("power", tree, self.argument(depth + 1, exponent=True))
        return tree

    def argument(self, depth: int, *, exponent: bool = False) -> Tree:
        """An argument as LaTeX takes it: a group or one token; `\\frac12` has the arguments 1 and 2."""
        token = self.peek()
        if token == "{":
            return self._bracketed("{", "}", depth)
        if token.isdigit() and len(token) > 1 and not exponent:
            self.tokens[self.position : self.position + 1] = list(token)
        if exponent and token == "-":
            self.take()
            return ("negative", self.atom(depth))
        return self.atom(depth)

    def _bracketed(self, left: str, right: str, depth: int) -> Tree:
        self.take(left)
        tree = self.sum(depth + 1)
        self.take(right)
        return tree

    def atom(self, depth: int) -> Tree:
        if depth > _DEEPEST:
            raise Unreadable("nested too deeply")
        token = self.peek()
        if token and token in "([{":
            return self._bracketed(token, {"(": ")", "[": "]", "{": "}"}[token], depth)
        if token == "|":
            return ("absolute", self._bracketed("|", "|", depth))
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return ("number", token.replace(",", ""))
        if token in ("e", "i"):
            return ("constant", token)
        if token.isalpha():
            return ("variable", token + self._subscript())
        if token.startswith("\\"):
            return self._command(token[1:], depth)
        raise Unreadable(f"{token!r} begins nothing")

    def _subscript(self) -> str:
        if self.peek() != "_":
            return ""
        self.take()
        if self.peek() != "{":
            return "_" + self.take()
        self.take("{")
        name = self.take()
        self.take("}")
        return "_" + name

    def _command(self, name: str, depth: int) -> Tree:
        if name == "pi":
            return ("constant", "pi")
        if _GREEK.fullmatch(name):
            return ("variable", "\\" + name + self._subscript())
        if name in ("frac", "binom"):
            above = self.argument(depth)
            return ("over" if name == "frac" else "binomial", above, self.argument(depth))
        if name == "sqrt":
            index: Tree = ("number", "2")
            if self.peek() == "[":
                index = self._bracketed("[", "]", depth)
            return ("root", self.argument(depth), index)
        if name == "log":
            base: Tree | None = None
            if self.peek() == "_":
                self.take()
                base = self.argument(depth)
            return ("logarithm", self._operand(depth), base or ("number", "10"))
        if name in FUNCTIONS:
            return self._function(name, depth)
        raise Unreadable(f"\\{name} is not read")

    def _function(self, name: str, depth: int) -> Tree:
        exponent: Tree | None = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument(depth, exponent=True)
        if exponent == ("negative", ("number", "1")):
            if name not in _INVERSE:
                raise Unreadable(f"\\{name}^{{-1}} is ambiguous")
            name, exponent = _INVERSE[name], None
        tree: Tree = ("function", name, self._operand(depth))
        return ("power", tree, exponent) if exponent else tree

    def _operand(self, depth: int) -> Tree:
        """What a function without brackets applies to: `\\sin 2x` is sin(2x), up to the next sign or function."""
        if self.peek() in ("(", "{", "["):
            return self.power(depth)
        tree = self.power(depth)
        while self._begins_factor(self.peek()) and self.peek()[1:] not in (*FUNCTIONS, "log"):
            tree = ("times", tree, self.power(depth))
        return tree
