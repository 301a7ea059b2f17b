"""What an answer may not do, found by reading it before it runs.

An answer is written with what the lesson has. Importing the reference or reaching for the checker is none: a
file that does it is not run, and its line is named. This stops what a learner would try, and what slips in by
accident. It is no prison: a class's unknown files belong in a container.
"""
import ast
import itertools

from tests.exercises.sheet import module_name, on_gpu, parse

MODULES = {
    "__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "functools",
    "heapq", "itertools", "math", "numba", "numpy", "operator", "random", "re", "statistics", "string",
    "time", "typing"}
BEHIND = "reaches behind the function"
NAMES = {
    "exec": "runs text", "eval": "runs text", "compile": "runs text", "open": "opens files",
    "__import__": "imports by a back door", "setattr": "changes objects", "delattr": "changes objects",
    "breakpoint": "waits for a keyboard, and a check has none: use print", "getattr": BEHIND,
    "globals": BEHIND, "vars": BEHIND, "__builtins__": BEHIND, "__loader__": BEHIND, "__spec__": BEHIND}
ATTRIBUTES = {
    "__globals__", "__code__", "__dict__", "__builtins__", "__subclasses__", "__closure__", "__class__",
    "__bases__", "__mro__", "f_back", "f_locals", "f_globals", "f_builtins", "tb_frame", "gi_frame", "sys",
    "os", "builtins", "modules", "ctypes", "ctypeslib", "ctypes_utils", "importlib", "testing", "tofile",
    "get_type_hints", "ForwardRef", "attrgetter", "methodcaller", "update_wrapper"}
METHODS = {
    "__init__", "__new__", "__post_init__", "__call__", "__repr__", "__str__", "__len__", "__iter__",
    "__next__", "__getitem__", "__setitem__", "__contains__", "__hash__", "__lt__", "__enter__", "__exit__",
    "__slots__", "__all__"}
NOT_ON_A_GPU = {
    ast.List: "a list", ast.Dict: "a dict", ast.Set: "a set", ast.Lambda: "a lambda", ast.Try: "try",
    ast.ListComp: "a comprehension", ast.SetComp: "a comprehension", ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension", ast.With: "with"}
NO_FUNCTIONS_OF_A_GPU = {"all", "any", "dict", "list", "set", "sorted", "sum", "zip", "enumerate", "map"}


def broken(source, reference, file):  # -> (line number, what it does) or None
    """The first thing in an answer that is not allowed. What the reference itself uses is."""
    def everything(tree):
        return [*uses(tree, file), *(uses_in_kernels(tree) if on_gpu(file) else ())]

    allowed = {what for what, _, _ in everything(parse(reference))}
    found = [(line, said) for what, line, said in everything(parse(source)) if what not in allowed]
    return min(found, default=None)


def uses(tree, file):  # yields (what, line number, what is wrong with it)
    modules = set(modules_of(tree))
    before_a_dot = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Import(names):
                for alias in names:
                    yield from imported(alias.name, line, file)
            case ast.ImportFrom(module, names, level):
                package = "." * level + (module or "")
                for alias in names:
                    whole = f"{package}.{alias.name}"  # a module, if package is one of ours
                    ours = package in ("lessons", "kernels", "kernels.cpu", "kernels.cuda")
                    yield from imported(whole if ours else package, line, file)
                    if not ours and (alias.name in ATTRIBUTES or alias.name[0] in "_*"):
                        yield whole, line, f"imports {whole}"
            case ast.Name(name) if name in NAMES:
                yield name, line, f"uses {name}, which {NAMES[name]}"
            case ast.Name(name, ast.Load()) if name in modules and node not in before_a_dot:
                yield f"{name} itself", line, f"gives {name}, a module, another name"
            case ast.Attribute(ast.Name(name), attribute) if name in modules and attribute.startswith("_"):
                yield f"{name}.{attribute}", line, f"reaches for {name}.{attribute}"
            case ast.Attribute(_, attribute) if attribute in ATTRIBUTES:
                yield f".{attribute}", line, f"reaches for .{attribute}"
            case ast.Attribute(ctx=ast.Store() | ast.Del()) if root(node) in modules:
                yield f"{root(node)} =", line, f"changes {root(node)}: {ast.unparse(node)}"
            case ast.MatchClass(kwd_attrs=attributes) if ATTRIBUTES.intersection(attributes):
                yield "match", line, f"reaches for .{ATTRIBUTES.intersection(attributes).pop()}"
            case ast.Call(ast.Name("type"), [_, _, _, *_]):
                yield "type", line, "makes a class by type(...)"
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.Name(name, ast.Store()) \
                    if name.startswith("__") and name not in METHODS:
                yield name, line, f"defines {name}, with which a result can pass for another"


def uses_in_kernels(tree):  # yields the same
    """What Python can run, in the simulator, and no GPU."""
    for function in ast.walk(tree):
        decorators = [ast.unparse(decorator) for decorator in getattr(function, "decorator_list", [])]
        if not any(decorator.startswith(("kernel", "inline")) for decorator in decorators):
            continue
        for node in itertools.chain.from_iterable(map(ast.walk, function.body)):
            what = NOT_ON_A_GPU.get(type(node))
            match node:
                case ast.Attribute(ast.Name("np"), name):
                    what = f"np.{name}"
                case ast.Call(ast.Name(name)) if name in NO_FUNCTIONS_OF_A_GPU:
                    what = f"{name}(...)"
            if what:
                yield what, node.lineno, (f"uses {what} in {function.name}, which a GPU cannot run: it has "
                                          "numbers, arrays, loops and math")


def modules_of(tree):  # yields the names under which the file has modules
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "numpy":
            yield from (alias.asname or alias.name for alias in node.names
                        if alias.name in ("linalg", "random", "fft", "testing", "lib", "core", "ma"))
        elif isinstance(node, ast.ImportFrom) and node.module == "kernels.cuda.compiled":
            yield from (alias.asname or alias.name for alias in node.names if alias.name == "cuda")


def root(node):
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def imported(module, line, file):
    own = module_name(file)
    if module == own or module.startswith(f"{own}."):
        yield "itself", line, f"imports {own}, the lesson that it is an exercise of"
    elif module.split(".")[0] not in MODULES or ATTRIBUTES.intersection(module.split(".")):
        kind = "the reference" if module.startswith(("lessons", "kernels")) else "the checker" \
            if module.startswith("tests") else "more than the lesson has"
        yield module, line, f"imports {module}: {kind}"
