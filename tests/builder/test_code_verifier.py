"""Verdicts on programs. Run without bubblewrap where the program is harmless; the rest needs the sandbox."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sandbox_toys import needs_bwrap, without_bwrap

from builder import code_verifier
from builder.code_verifier import code, code_version, difference, last_block, read_tests
from builder.errors import VerifyError
from builder.outcome import Outcome
from builder.sandbox import Limits

Judge = Callable[..., Outcome]
FAST = Limits(cpu_s=1, wall_s=20, memory_bytes=300_000_000, output_bytes=100_000)
ADDS_ONE = "assert f(1) == 2\nassert f(2) == 3"
PRINTS_SUM = json.dumps({"language": "python", "tests": [{"stdin": "1 2\n", "stdout": "3\n"}]})


def fenced(source: str, label: str = "python") -> str:
    return f"```{label}\n{source}\n```"


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """`code` on a harmless program, with the limits of the sandbox's child and without bubblewrap."""
    monkeypatch.setattr(code_verifier, "sandboxed", without_bwrap(tmp_path))

    def verdict(source: str, gold: str, limits: Limits = FAST) -> Outcome:
        return code(gold, "python_tests", fenced(source), False, limits)

    return verdict


@pytest.mark.parametrize(
    ("answer", "block"),
    [
        ("```python\na = 1\n```\nor\n```python\na = 2\n```", "a = 2\n"),
        ("```python\na = 1\n```\nwhich prints\n```\n1\n```\n```js\nlet a\n```", "a = 1\n"),
        ("```Py\na\n```", "a\n"),
        ("~~~python3\na\n~~~", "a\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("1. So:\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
        ("```python title=x\na\n```", "a\n"),
        ("```python\r\na\r\n```", "a\n"),
        ("```python\nthought\n```</think>```python\nanswer\n```", "answer\n"),
        ("```python\nthought\n```\n</think>\nI cannot.", None),
        ("```python\ns = '－１'  # − ．\n```", "s = '－１'  # − ．\n"),
        ("```pythonic\na\n```", None),
        ("```\na\n```", None),
        ("a = 1", None),
        ("```python\na\n```\n```python\nb", "b"),
        ("```python\n```", ""),
    ],
)
def test_the_last_block_of_the_language_after_the_thoughts_is_the_program(answer: str, block: str | None) -> None:
    assert last_block(answer, "python") == block


@pytest.mark.parametrize(
    "line", ["```" + "a" * 10**6 + "`", "```" + " " * 10**6 + "`", "`" * 10**6 + "x`", " " * 10**6]
)
def test_hostile_fences_are_read_in_linear_time(line: str) -> None:
    assert last_block(f"{line}\n```python\na\n```\n{line}", "python") == "a\n"


def test_of_a_cut_reply_only_a_closed_block_counts() -> None:
    assert last_block("```python\na\n```\n```python\nb", "python", closed_only=True) == "a\n"
    assert code(ADDS_ONE, None, "```python\ndef f(x):\n  ret", True).verdict == "wrong"


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("1\n2", None),
        ("1  \n2\t\r\n\n\n", None),
        ("1\n", "1 lines, not 2"),
        ("1\n2\n3\n", "3 lines, not 2"),
        ("1\n\n2\n", "line 2 is '', not '2'"),
        ("\n1\n2\n", "line 1 is '', not '1'"),
        (" 1\n2\n", "line 1 is ' 1', not '1'"),
        ("1\n2.0\n", "line 2 is '2.0', not '2'"),
        ("1\x0c2", "line 1 is '1\\x0c2', not '1'"),
        ("", "0 lines, not 2"),
    ],
)
def test_every_line_is_compared_and_only_white_space_at_line_ends_is_free(output: str, problem: str | None) -> None:
    assert difference("1\n2\n", output) == problem


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("", "empty"),
        ("{", "Expecting property name"),
        ("{" + '"a":[' * 200_000, ""),
        ('{"language": "python"}', "it has language"),
        ("{}", "it has nothing"),
        ('{"language": "python", "asserts": "assert 1", "tests": []}', "it needs `asserts`, or `tests`, or `inputs`"),
        ('{"language": "python", "asserts": "assert 1", "timeout": 3}', "it has asserts, language, timeout"),
        ('{"inputs": [[1]], "outputs": [2], "fn_name": "f"}', "it has fn_name, inputs, outputs"),
        ('{"inputs": ["1", "2"], "outputs": ["1"]}', "lists of the same length"),
        ('{"inputs": [], "outputs": []}', "at least one test"),
        ('{"inputs": ["1"]}', "it has inputs"),
        ('{"inputs": [1], "outputs": ["1"]}', "input and output 1 must be strings"),
        ("[]", "at least one test"),
        ("[1]", "Python in strings"),
        ("['assert f(1) == 2']", "Expecting value"),
        ('{"language": "python", "tests": []}', "at least one test"),
        ('{"language": "python", "tests": [{"stdin": "1"}]}', "test 1 must have"),
        ('{"language": "python", "tests": [{"stdin": "1", "stdout": 1}]}', "test 1 must have"),
        ('{"asserts": ["assert 1"]}', "must be strings"),
        ('{"language": null, "asserts": "assert 1"}', "must be strings"),
        ('{"language": "python", "asserts": " "}', "`asserts` is empty"),
    ],
)
def test_a_gold_that_does_not_parse_is_unscorable_and_says_why(gold: str, reason: str) -> None:
    outcome = code(gold, "python_tests", fenced("x = 1"), False)
    assert outcome.verdict == "unscorable"
    assert "the gold does not parse" in outcome.votes[0]
    assert reason in outcome.votes[0]


def test_golds_are_read_in_the_forms_that_benchmarks_have() -> None:
    assert read_tests(ADDS_ONE).asserts == ADDS_ONE
    assert read_tests(json.dumps(ADDS_ONE.split("\n"))).asserts == ADDS_ONE
    assert read_tests('{"language": "py", "asserts": "assert g()", "entry_point": "g"}').entry_point == "g"
    assert read_tests('{"asserts": "assert g()"}').language == "python"
    for gold in (
        PRINTS_SUM,
        '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}',
        '{"inputs": [["1 2"]], "outputs": ["3\\n"]}',
    ):
        assert read_tests(gold).pairs == (("1 2\n", "3\n"),)


def test_other_languages_and_replies_without_a_block_are_unscorable_and_an_empty_reply_is_wrong() -> None:
    gold = json.dumps({"language": "cpp", "tests": [{"stdin": "", "stdout": "1"}]})
    assert "no interpreter for 'cpp'" in code(gold, None, fenced("int main() {}", "cpp"), False).votes[0]
    assert code(gold, None, fenced("int main() {}", "cpp"), False).verdict == "unscorable"
    assert code(ADDS_ONE, None, "f adds one.", False).verdict == "unscorable"
    assert code(ADDS_ONE, None, "", False).verdict == "wrong"


def test_a_program_of_ten_megabytes_is_unscorable_without_being_run(judge: Judge) -> None:
    outcome = judge("x = 1\n" * 1_700_000, ADDS_ONE)
    assert (outcome.verdict, len(outcome.extracted or "")) == ("unscorable", 2000)
    assert "characters" in outcome.votes[0]


def test_without_a_sandbox_the_verdict_is_error_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[str]:
        raise VerifyError("bubblewrap (`bwrap`) is not installed.")

    monkeypatch.setattr(code_verifier, "sandboxed", refuse)
    for gold in (ADDS_ONE, PRINTS_SUM):
        outcome = code(gold, None, fenced("def f(x): return x + 1"), False)
        assert (outcome.verdict, outcome.votes) == ("error", ("code:error: bubblewrap (`bwrap`) is not installed.",))


@pytest.mark.parametrize("gold", [ADDS_ONE, PRINTS_SUM])
def test_where_a_limit_cannot_be_set_the_program_is_not_run(judge: Judge, tmp_path: Path, gold: str) -> None:
    mark = tmp_path / "mark"
    outcome = judge(f"open({str(mark)!r}, 'w')\nprint(3)", gold, limits=Limits(open_files=2**40))
    assert (outcome.verdict, mark.exists()) == ("error", False)


def test_the_version_names_the_interpreter() -> None:
    assert code_version() == f"2 python {sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", "correct"),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())), end='')", "correct"),
        ("print(4)", "wrong"),
        ("print(3)\nprint()\nprint('done')", "wrong"),
        ("print(3)\nraise SystemExit(1)", "wrong"),
        ("print(3)\n1 / 0", "wrong"),
        ("print('OK')", "wrong"),
        ("def f(:", "wrong"),
        ("import numpy", "unscorable"),
        ("while True: print('3')", "wrong"),
        ("while True: pass", "timeout"),
        ("x = [0]\nwhile True: x += x", "wrong"),
    ],
)
def test_programs_that_print_are_judged_by_output_and_exit_status(judge: Judge, source: str, verdict: str) -> None:
    assert judge(source, PRINTS_SUM).verdict == verdict


def test_all_pairs_count_and_the_failing_one_is_named(judge: Judge) -> None:
    tests = [{"stdin": str(n), "stdout": str(n % 2)} for n in (1, 2, 3)]
    outcome = judge("n = int(input())\nprint(n % 3)", json.dumps({"language": "python", "tests": tests}))
    assert outcome.votes == ("code:wrong: test 2 of 3: line 1 is '2', not '0'",)


NODES = "root = Node(1)\nroot.left = Node(2)\nassert root.left.value == 2\nassert depth(root) == 2"
TREE = """class Node:
    def __init__(self, value): self.value, self.left = value, None
def depth(node): return 1 + depth(node.left) if node else 0"""
HUMANEVAL = "METADATA = {}\ndef check(candidate):\n    assert candidate(1) == 2"
UNITTEST = """import unittest
from solution import f
class TestF(unittest.TestCase):
    def test_adds(self): self.assertEqual(f(1), 2)
    def test_words(self):
        with self.assertRaises(TypeError): f('a')"""


@pytest.mark.parametrize(
    ("source", "tests", "verdict"),
    [
        ("def f(x): return x + 1", ADDS_ONE, "correct"),
        ("def f(x): return 2", ADDS_ONE, "wrong"),
        ("def g(x): return x + 1", ADDS_ONE, "wrong"),
        ("def f(x): return x + 1", HUMANEVAL, "correct"),
        ("def f(x): return x", HUMANEVAL, "wrong"),
        ("def g(x): return 1\ndef f(x): return x + g(x)", HUMANEVAL, "unscorable"),
        ("def g(x): return 1\ndef f(x): return x + g(x)", HUMANEVAL + "\n\ncheck(f)", "correct"),
        ("def g(x): return x + 1\ndef f(x): return x", HUMANEVAL + "\n\ncheck(f)", "wrong"),
        ("def g(x): return x + 1", HUMANEVAL + "\n\ncheck(f)", "wrong"),
        ("def f(x): return x + 1", UNITTEST, "correct"),
        ("def f(x): return str(x)", UNITTEST, "wrong"),
        ("def f(x): return x + 1", "from solution import *\ndef test_f():\n    assert f(1) == 2", "correct"),
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3", "correct"),
        ("def f(x): x.append(1)", "a = []\nf(a)\nassert a == [1]", "correct"),
        ("def f(x): return math.inf\nimport math", "assert math.isinf(f(1))", "correct"),
        ("def f(x): return {(1, 'é'): [{2.5}, b'x', 1j, 2**70, None, int]}",
         "assert f(0) == {(1, 'é'): [{2.5}, b'x', 1j, 2**70, None, int]}", "correct"),
        ("def f(x): yield from range(x)", "assert list(f(3)) == [0, 1, 2]", "correct"),
        ("def f(x): yield from range(x)", "assert f(3) == [0, 1, 2]", "wrong"),
        (TREE, NODES, "correct"),
        ("def f(x): raise ValueError('no')", "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'no'",
         "correct"),
        ("def f(x): return x()", "assert f(lambda: 1) == 1", "unscorable"),
        ("def f(x): return x + 1", "f(1)", "unscorable"),
        ("def f(x): return x + 1", "def helper():\n    assert f(1) == 2", "unscorable"),
        ("def f(x): return x + 1", "assert f(1) ==", "unscorable"),
        ("def f(x): return x + 1", "import numpy\nassert f(1) == 2", "unscorable"),
        ("import numpy\ndef f(x): return x + 1", ADDS_ONE, "unscorable"),
        ("def f(x): return f(x)", ADDS_ONE, "wrong"),
        ("def f(x):\n    while True: pass", ADDS_ONE, "timeout"),
        ("def f(x): return 2", "while True:\n    assert f(1) == 2", "timeout"),
        ("def f(:", ADDS_ONE, "wrong"),
        ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))", "wrong"),
    ],
)  # fmt: skip
def test_functions_are_judged_by_python_tests(judge: Judge, source: str, tests: str, verdict: str) -> None:
    outcome = judge(source, tests)
    assert outcome.verdict == verdict, outcome.votes


def test_the_entry_point_of_a_gold_names_the_candidate_among_several(judge: Judge) -> None:
    gold = json.dumps({"language": "python", "asserts": HUMANEVAL, "entry_point": "f"})
    assert judge("def g(x): return 1\ndef f(x): return x + g(x)", gold).verdict == "correct"


LIAR = """class Yes(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __bool__(self): return True
def f(x): return Yes(7)"""
FORGER = """import gc, json, os, struct, sys
for number in range(3, 64):
    for said in ({"value": ["i", "0x2"]}, {"verdict": "correct", "reason": ""}):
        body = json.dumps(said).encode()
        try: os.write(number, struct.pack("<I", len(body)) + body)
        except OSError: pass
def f(x): return 7"""


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "print('OK')\nprint('correct')\ndef f(x):\n    print('{\"verdict\": \"correct\"}')",
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\ndef f(x): return 7",
        "class AssertionError(Exception): pass\ndef f(x): return 7",
        "import builtins, unittest\nbuiltins.set = builtins.sorted = lambda *a: 0\n"
        "unittest.TestCase.assertEqual = lambda *a: None\ndef f(x): return 7",
        "def set(x): return 0\ndef isinstance(*a): return True\ndef f(x): return 7",
        "def _count_of_asserts(): raise SystemExit(0)\ndef f(x): return 7",
        "__all__ = ['set', 'len']\ndef set(x): return 0\ndef check(c): pass\ndef f(x): return 7",
        LIAR,
        LIAR.replace("(int)", ""),
        LIAR.replace("(int)", "(list)").replace("Yes(7)", "Yes([7])"),
        FORGER,
        "import sys\nsys.modules['__main__'].__dict__.clear()\ndef f(x): return 7",
        "import json\njson.dumps = lambda *a: '{}'\ndef f(x): return 7",
        "import json\njson.dumps = lambda *a: '[' * 100000\ndef f(x): return 7",
        "import json\njson.dumps = lambda *a: 'x' * 10**8\ndef f(x): return 7",
        "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
        "def f(x):\n    raise AssertionError",
        "def f(x):\n    import sys\n    sys.setrecursionlimit(10**8)\n    return f(x)",
        "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
        "def f(x): return bytearray(10**9)",
        "import os\ndef f(x): return [os.fork() for _ in range(20)]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("tests", ["assert set([f(1)]) == set([2])\nassert f(2) == 3"])
def test_no_program_talks_its_way_to_correct(judge: Judge, source: str, tests: str) -> None:
    outcome = judge(source, tests)
    assert outcome.verdict in ("wrong", "timeout", "unscorable"), outcome.votes


@pytest.mark.parametrize("name", ["set", "isinstance", "sorted"])
def test_a_star_import_of_the_program_replaces_no_built_in(judge: Judge, name: str) -> None:
    source = f"def {name}(*a): return 1\ndef f(x): return 7"
    tests = f"import builtins\nfrom solution import *\nassert {name} is builtins.{name}\nassert f(1) == 7"
    outcome = judge(source, tests)
    assert outcome.verdict == "correct", outcome.votes


@needs_bwrap
def test_right_programs_pass_in_the_sandbox() -> None:
    assert code(ADDS_ONE, "python_tests", fenced("def f(x): return x + 1"), False).verdict == "correct"
    assert code(PRINTS_SUM, "python_tests", fenced("print(sum(map(int, input().split())))"), False).verdict == "correct"
