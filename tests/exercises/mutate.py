"""Mistakes, planted into a right function one at a time. A test that lets one through would praise a learner
who made it. The hand-written ones are in mutants.toml; the general ones are made here, from the syntax tree.
"""
import ast
import functools
import textwrap
import tomllib

from tests.exercises.sheet import ROOT, has_docstring, text_of

OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
         ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And}
CALLED = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "maximum": "minimum",
          "minimum": "maximum", "argmax": "argmin", "argmin": "argmax", "zeros": "ones", "exp": "expm1",
          "log": "log1p"}
DROPPED = "swapaxes", "transpose", "astype", "f32", "float", "int", "copy", "reversed"  # f(x) becomes x
ANSWERS = ("none", "zeros", "negative", "double", "nan")


@functools.cache
def by_hand():
    with open(ROOT / "tests/mutants.toml", "rb") as file:
        return tomllib.load(file)


@functools.cache
def no_mistakes():
    with open(ROOT / "tests/survivors.toml", "rb") as file:
        return tomllib.load(file)


def survivors(lesson, name):  # -> {mutant: why it is no mistake}
    return {entry["mutant"]: entry["why"] for entry in no_mistakes().get(lesson, {}).get(name, [])}


def hand_made(exercise, source):  # -> [(what was changed, the function's text)]
    """ValueError unless what is to be replaced stands exactly once in the function, docstring aside."""
    text, made = text_of(source, exercise.name), []
    start = text.index('"""', text.index('"""') + 3) + 3  # behind the docstring
    for entry in by_hand().get(exercise.lesson, {}).get(exercise.name, []):
        find, put = entry["find"], entry["put"]
        if text.count(find, start) != 1 or find == put:
            raise ValueError(f"mutants.toml, {exercise.lesson}.{exercise.name}: {find!r} must stand once in "
                             f"its code (it does {text.count(find, start)} times), and `put` differ from it")
        mutant = text[:start] + text[start:].replace(find, put)
        made.append((f"{find} -> {put}", textwrap.dedent(mutant)))
    return made


def general(exercise, source):  # -> [(what was changed, the function's text)], each text once
    tree = ast.parse(textwrap.dedent(text_of(source, exercise.name)))
    function = tree.body[0]
    body = function.body[has_docstring(function) + exercise.keep:]
    made, seen = [], {ast.unparse(tree)}
    for statement in body:
        for change in changes(statement, function):
            text = ast.unparse(tree)
            if text not in seen:
                seen.add(text)
                place = 1 + sum(label.split("  at place")[0] == change for label, _ in made)
                made.append((f"{change}  at place {place}" if place > 1 else change, text))
    return made


def changes(node, parent):
    """Yields a description of each change while the tree has it; afterwards the tree is as before."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.arguments, ast.Import, ast.ImportFrom)):
        return
    for new in variants(node, parent):
        shown = parent if isinstance(node, ast.Constant) and isinstance(parent, ast.expr) else node
        old = " ".join(ast.unparse(shown).split())
        replace(parent, node, new)
        shown = parent if shown is parent else new
        yield f"{old} -> {'(removed)' if isinstance(new, ast.Pass) else ' '.join(ast.unparse(shown).split())}"
        replace(parent, new, node)
    for child in ast.iter_child_nodes(node):
        yield from changes(child, node)


def replace(parent, old, new):
    for field, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, field, new)
        elif isinstance(value, list):
            value[:] = [new if item is old else item for item in value]


def variants(node, parent):
    """The wrong nodes that a learner might have written in place of this one."""
    match node:
        case ast.BinOp(left, ast.Add() | ast.Sub() as op, right):
            yield ast.BinOp(left, OTHER[type(op)](), right)
        case ast.BinOp(left, ast.Mult(), right):
            yield from (left, right)
        case ast.BinOp(left, ast.Div() | ast.FloorDiv() as op, right):
            yield left
            yield ast.BinOp(left, ast.FloorDiv() if isinstance(op, ast.Div) else ast.Div(), right)
        case ast.BinOp(left, ast.Pow(), _):
            yield left
        case ast.UnaryOp(ast.USub(), ast.Constant() as value) if isinstance(parent, ast.keyword):
            yield ast.Constant(0) if parent.arg == "axis" else value
        case ast.UnaryOp(ast.USub() | ast.Not(), value):
            yield value
        case ast.Compare(left, [op, *ops], rest) if type(op) in OTHER:
            yield ast.Compare(left, [OTHER[type(op)](), *ops], rest)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(OTHER[type(op)](), values)
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.Tuple([first, _, *_]) if isinstance(parent, ast.keyword) and parent.arg == "axis":
            yield first
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(0) if isinstance(parent, ast.keyword) and parent.arg == "axis":
            yield ast.UnaryOp(ast.USub(), ast.Constant(1))
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(float() as value):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.Call(ast.Name("range"), [*before, stop], []):
            for op in ast.Sub(), ast.Add():
                yield ast.Call(node.func, [*before, ast.BinOp(stop, op, ast.Constant(1))], [])
        case ast.Call(ast.Attribute(ast.Name("np"), called), [value, *_]) if called in DROPPED:
            yield value
        case ast.Call(ast.Attribute(value, called)) if called in DROPPED and not isinstance(parent, ast.Expr):
            yield value
        case ast.Call(ast.Name(called), [value]) if called in DROPPED:
            yield value
        case ast.Attribute(value, "T"):
            yield value
        case ast.Attribute(value, called) if called in CALLED and isinstance(parent, ast.Call):
            yield ast.Attribute(value, CALLED[called])
        case ast.Name("max" | "min" as called) if isinstance(parent, ast.Call):
            yield ast.Name(CALLED[called])
        case ast.Slice(lower, upper, step):
            if lower:
                yield ast.Slice(ast.BinOp(lower, ast.Add(), ast.Constant(1)), upper, step)
            if upper:
                yield ast.Slice(lower, ast.BinOp(upper, ast.Sub(), ast.Constant(1)), step)
        case ast.AugAssign(target, op, value):
            yield ast.Pass()
            yield ast.Assign([target], value, lineno=0)
            if type(op) in OTHER:
                yield ast.AugAssign(target, OTHER[type(op)](), value)
        case ast.Assign([ast.Subscript() | ast.Attribute()]) | ast.Expr(ast.Call()) | ast.If(orelse=[]):
            yield ast.Pass()
        case ast.Return(ast.Tuple(elements)):
            yield ast.Return(ast.Constant(None))
            for i, element in enumerate(elements):
                for answer in ANSWERS:
                    wrong = ast.Call(ast.Name(f"answer_{answer}"), [element], [])
                    yield ast.Return(ast.Tuple([*elements[:i], wrong, *elements[i + 1:]]))
        case ast.Return(value) if value:
            for answer in ANSWERS:
                yield ast.Return(ast.Call(ast.Name(f"answer_{answer}"), [value], []))
