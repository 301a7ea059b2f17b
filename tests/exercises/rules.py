"""What an answer may not do, found by reading it before it runs.

An answer is written with what the lesson has. Importing the reference or reaching for the checker is none: a
file that does it is not run, and its line is named. This stops what a learner would try, and what slips in by
accident. It is no prison: a class's unknown files belong in a container.
"""
import ast

from tests.exercises.sheet import module_name

ALWAYS = {"math", "numpy", "numba", "itertools", "functools", "collections", "typing", "heapq", "operator"}
BEHIND = "reaches behind the function"
NAMES = {
    "exec": "runs text", "eval": "runs text", "compile": "runs text", "open": "opens files",
    "__import__": "imports by a back door", "input": "waits for a keyboard",
    "setattr": "changes other objects", "delattr": "changes other objects", "globals": BEHIND, "vars": BEHIND,
    "__builtins__": BEHIND, "__loader__": BEHIND, "__spec__": BEHIND}
ATTRIBUTES = {
    "__globals__", "__code__", "__dict__", "__builtins__", "__subclasses__", "__closure__", "__class__",
    "__bases__", "__mro__", "f_back", "f_locals", "f_globals", "f_builtins", "tb_frame", "gi_frame", "sys",
    "os", "builtins", "modules", "ctypes", "ctypeslib", "importlib", "testing", "tofile"}
METHODS = {
    "__init__", "__call__", "__repr__", "__str__", "__len__", "__iter__", "__getitem__", "__enter__",
    "__exit__", "__post_init__"}


def broken(source, reference, file):  # -> (line number, what it does) or None
    """The first thing in an answer that is not allowed. What the reference itself uses is."""
    used = set(uses(ast.parse(reference), file))
    allowed = {what for what, _, _ in used}
    found = [(line, said) for what, line, said in uses(ast.parse(source), file) if what not in allowed]
    return min(found, default=None)


def uses(tree, file):  # yields (what, line number, what is wrong with it)
    own, modules = module_name(file), set()
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules.add(alias.asname or alias.name.split(".")[0])
                yield from imported(alias.name, line, own)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in ("lessons", "kernels", "kernels.cpu"):  # its names are modules
                for alias in node.names:
                    modules.add(alias.asname or alias.name)
                    yield from imported(f"{module}.{alias.name}", line, own)
            else:
                yield from imported(module, line, own)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.id, line, f"uses {node.id}, which {NAMES[node.id]}"
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield f".{node.attr}", line, f"reaches for .{node.attr}"
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("__") and node.name not in METHODS:
            yield node.name, line, f"defines {node.name}, with which a result can pass for another"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type" \
                and len(node.args) == 3:
            yield "type", line, "makes a class by type(...)"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            root = node
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules and isinstance(node, ast.Attribute):
                yield f"{root.id}.=", node.lineno, f"changes {root.id}: {ast.unparse(node)}"


def imported(module, line, own):
    if module == own or module.startswith(own + "."):
        yield "itself", line, f"imports {own}, the lesson that it is an exercise of"
    elif module.split(".")[0] not in ALWAYS:
        kind = "the reference" if module.startswith(("lessons", "kernels")) else "the checker" \
            if module.startswith("tests") else "more than the lesson has"
        yield module, line, f"imports {module}: {kind}"
