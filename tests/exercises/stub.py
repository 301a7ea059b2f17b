"""A lesson's file with blanks: what `make exercise` writes, and what can be read off such a file."""
import ast

from tests.exercises.sheet import first_line, functions, has_docstring, lines_of, parse


def blank(source, exercises):  # text, {name: Exercise} -> text
    """The body of each exercise is taken out. Decorators, signature, docstring and the first `keep`
    statements stay; comments between the others go, they are part of the answer."""
    lines, nodes = lines_of(source), functions(source)
    for name in sorted(exercises, key=lambda name: -nodes[name].lineno):  # from the end: line numbers hold
        node, exercise = nodes[name], exercises[name]
        kept = has_docstring(node) + exercise.keep
        start = node.body[kept - 1].end_lineno if kept else node.body[0].lineno - 1
        pad = " " * node.body[0].col_offset
        lines[start:node.end_lineno] = [
            f"{pad}# TODO: {size(node, exercise)}. Stuck? make hint {int(exercise.lesson)}\n",
            f'{pad}raise NotImplementedError("{name}")\n']
    return "".join(lines)


def size(node, exercise):  # -> "about 3 lines", of what is to be written
    body = ast.Module(node.body[has_docstring(node) + exercise.keep:], [])
    n = len({inner.lineno for inner in ast.walk(body) if hasattr(inner, "lineno")})
    return f"about {n} line{'s' * (n > 1)}"


def is_blank(node):
    return any(isinstance(statement, ast.Raise) and "NotImplementedError" in ast.unparse(statement)
               for statement in node.body)


def signature(node):
    """What callers rely on: decorators, names, order, defaults.

    >>> signature(functions("@kernel\\ndef f(x, n=1): return n")["f"])
    '@kernel def f(x, n=1)'
    """
    decorators = "".join(f"@{ast.unparse(decorator)} " for decorator in node.decorator_list)
    return f"{decorators}def {node.name}({ast.unparse(node.args)})"


def pieces(source):  # -> {"attention_forward": text, "import": text, ...}
    """The top-level parts of a file, to say what an update changed; methods apart, about-lines left out."""
    lines, found = lines_of(source), {}
    for node in parse(source).body:
        name = getattr(node, "name", None) or " ".join(ast.unparse(node).split())[:40]
        start = first_line(node) if hasattr(node, "decorator_list") else node.lineno
        text = lines[start - 1:node.end_lineno]
        found[name] = "".join(line for line in text if "# TODO: about" not in line)
    return found
