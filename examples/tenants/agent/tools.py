"""What the agent may do. Each tool is a function of its arguments; nothing reaches outside."""

import ast
import operator
import re
from decimal import Decimal

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def search(documents: dict, query: str, limit: int = 3) -> list:
    """The documents that hold most of the query's words, best first."""
    words = set(re.findall(r"\w+", query.lower()))
    scored = [
        (len(words & set(re.findall(r"\w+", text.lower()))), name)
        for name, text in documents.items()
    ]
    best = sorted((-score, name) for score, name in scored if score)
    return [name for _, name in best[:limit]]


def extract(documents: dict, names: list, pattern: str) -> dict:
    """The first number that follows the pattern in each of the documents."""
    found = {}
    for name in names:
        match = re.search(rf"{re.escape(pattern)}\D*([\d,]+(?:\.\d+)?)", documents[name])
        if match:
            found[name] = Decimal(match[1].replace(",", ""))
    return found


def calculate(expression: str, values: dict) -> Decimal:
    """Arithmetic over named values. A model wrote it, so it is never run as code."""

    def value(node):
        match node:
            case ast.Expression(body):
                return value(body)
            case ast.BinOp(left, how, right):
                return OPERATORS[type(how)](value(left), value(right))
            case ast.UnaryOp(how, operand):
                return OPERATORS[type(how)](value(operand))
            case ast.Constant(number) if isinstance(number, int | float):
                return Decimal(str(number))
            case ast.Name(name):
                return Decimal(values[name])
            case ast.Call(ast.Name("sum"), [ast.Name(name)], []):
                return sum(values[name].values(), Decimal(0))
        raise ValueError(f"not arithmetic: {ast.unparse(node)}")

    return value(ast.parse(expression, mode="eval"))


def write(title: str, lines: list, values: dict) -> str:
    """A note of one title and some lines, with named values put in."""
    body = "\n".join(f"- {line.format_map(values)}" for line in lines)
    return f"# {title}\n{body}"


def publish(text: str, to: str) -> dict:
    """Hand the text over. The one tool that others can notice, so a plan must ask before it."""
    return {"to": to, "characters": len(text), "text": text}


TOOLS = {tool.__name__: tool for tool in (search, extract, calculate, write, publish)}
NEEDS_APPROVAL = {"publish"}
NEEDS_DOCUMENTS = {"search", "extract"}
