"""What the parser takes, and the line that it names where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checker.litmus.rig import FOLDER, SHAPES, shape, written
from vtlkit.checker.litmus.interpreter import compute
from vtlkit.checker.litmus.judge import judge
from vtlkit.checker.litmus.lexer import tokens
from vtlkit.checker.litmus.parser import parse
from vtlkit.checker.litmus.primitives import PRIMITIVES
from vtlkit.checker.litmus.syntax import Address, LitmusError, Register, places

HEAD = "C name\n\n{}\n\n"
THREAD = "P0(int *x)\n{\n\tint r0;\n\n\tr0 = READ_ONCE(*x);\n}\n\n"
END = "exists (0:r0=1)\n"


def final(thread: str, initial: str = "") -> object:
    """The value of P0's r0 at the end of its only execution."""
    (state,) = judge(written(thread, condition="exists (0:r0=1)", initial=initial)).states
    return state[0]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 3 - 2", 5),
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("-7 % 4", -3),
        ("1 << 3 | 1", 9),
        ("6 & 3 ^ 1", 3),
        ("1 < 2 == 1", 1),
        ("5 >= 5 && 3 != 3 || 1", 1),
        ("!0 + ~0", 0),
        ("!x", 0),
        ("x == x", 1),
        ("x != y", 1),
        ("0x10 + 1UL", 17),
        ("(long)(unsigned int)3", 3),
        ("NULL", 0),
        ("likely(2)", 2),
        ("x", Address("x")),
        ("&*x", Address("x")),
        ("atomic_add_return(3, z)", 8),
        ("atomic_fetch_add(3, z)", 5),
        ("atomic_dec_and_test(z)", 0),
        ("atomic_sub_and_test(5, z)", 1),
        ("atomic_add_negative(-6, z)", 1),
        ("atomic_add_unless(z, 1, 5)", 0),
        ("atomic_add_unless(z, 1, 4)", 1),
        ("atomic64_fetch_andnot(4, z) + READ_ONCE(*z)", 6),
        ("cmpxchg(z, 4, 9) + READ_ONCE(*z)", 10),
        ("cmpxchg(z, 5, 9) + READ_ONCE(*z)", 14),
        ("xchg_release(z, 7)", 5),
        ("spin_is_locked(l)", 0),
        ("spin_trylock(l) + spin_is_locked(l)", 2),
    ],
)
def test_expressions(expression: str, value: object) -> None:
    assert final(f"int r0 = {expression};", "int z = 5;") == value


@pytest.mark.parametrize(
    ("thread", "value"),
    [
        ("int r0; if (*z == 5) r0 = 1; else r0 = 2;", 1),
        ("int r0; if (*z != 5) r0 = 1; else if (*z > 4) { r0 = 2; } else r0 = 3;", 2),
        ("int r0 = 1, r1 = 2; r0 += r1; r0 <<= 1;", 6),
        ("int r0; (void)atomic_inc(z); r0 = *z;", 6),
        ("int *r1 = z; int r0 = *r1;", 5),
        ("int r0; *z = 8; WRITE_ONCE(*z, *z + 1); r0 = READ_ONCE(*z);", 9),
        ("r0 = 4;", 4),
        ("int r0; ; { } smp_mb(); barrier();", 0),
        ("int r0; // no *comment*\n/* r0 = 1; */ (* r0 = 2; (* 3 *) *) r0 = 3;", 3),
    ],
)
def test_statements(thread: str, value: object) -> None:
    assert final(thread, "int z = 5;") == value


def test_initial_values() -> None:
    initial = (
        "{ int x = 1; y = 2; int *p = &x; q = x; atomic_t v = ATOMIC_INIT(-3); int a[2] = {4, 5}; int b[3]; 0:r1 = 7; }"
    )
    test = parse(f"C name\n{initial}\nP0(int *x, int b[]) {{ int r0; int r1; }}\nexists (0:r1=7 /\\ a[1]=5 /\\ [y]=2)")
    x = Address("x")
    assert test.initial[x] == 1
    assert test.initial[Address("p")] == test.initial[Address("q")] == x
    assert test.initial[Address("v")] == -3
    assert [test.initial[Address(name, 1)] for name in "ab"] == [5, 0]
    assert test.registers == {Register(0, "r1"): 7}
    assert judge(test).positive == 1


def test_the_question() -> None:
    text = (
        HEAD + THREAD + "locations [x; 0:r0]\nfilter (x=0)\n~exists (~(0:r0=1 \\/ x!=2) /\\ not 0:r0==-1 /\\ P0:r0=0x1)"
    )
    test = parse(text)
    assert test.quantifier == "~exists"
    assert test.locations == (Address("x"), Register(0, "r0"))
    assert test.keep is not None
    assert places(test.condition) == {Register(0, "r0"), Address("x")}


@pytest.mark.parametrize(
    ("comment", "recorded", "race"),
    [
        ("(* Result: Never *)", "Never", False),
        ("(*\n * Result: Sometimes DATARACE\n *)", "Sometimes", True),
        ("// Result: Always", "Always", False),
        ("(* Never. *)", "", False),
    ],
)
def test_the_recorded_result(comment: str, recorded: str, race: bool) -> None:
    test = parse("C name\n" + comment + "\n{}\n" + THREAD + END)
    assert (test.recorded, test.recorded_race) == (recorded, race)


def test_what_is_recorded_and_cannot_be_compared() -> None:
    test = parse("C name\n(* Result: Maybe *)\n{}\n" + THREAD + END)
    assert judge(test).agrees(test) is None
    stuck = parse("C name\n(* Result: DEADLOCK *)\n{}\nP0(spinlock_t *l) { spin_lock(l); spin_lock(l); }\nexists (l=1)")
    assert judge(stuck).agrees(stuck) is True


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("", 1, "the file is empty"),
        ("\n\nX86 SB\n{}", 3, "no litmus test in C: the first line is 'C name', found 'X86'"),
        ("C\n{}", 1, "the test has no name"),
        ("C name\n", 2, "no initial values"),
        ("C name\n{\n\tint x = 1\n\tint y;\n}", 4, "';' expected behind an initial value, found 'int'"),
        ("C name\n{ x = y z; }", 2, "';' expected behind an initial value, found 'z'"),
        ("C name\n{ int a[2] = {1, 2, 3}; }", 2, "the array a has 3 values for 2 elements"),
        ("C name\n{ x = f(1); }", 2, "f() is no initial value"),
        (HEAD, 5, "thread P0 expected, found the end of the file"),
        (HEAD + "P1(int *x) { }", 5, "thread P0 expected, found 'P1'"),
        (HEAD + "P0(int x)\n{ }", 5, "the parameter x is no pointer"),
        (HEAD + "P0(int *x)\n{\n\tr0 = 1\n}", 8, "';' expected behind a statement, found '}'"),
        (HEAD + "P0(int *x)\n{\n\twhile (1) ;\n}", 7, "'while' is not supported: write loops out"),
        (HEAD + "P0(int *x)\n{\n\tsmp_mb()\n\t;\n\tfoo(x);\n}", 9, "foo() is no primitive that is known here"),
        (HEAD + "P0(int *x)\n{\n\tsmp_mb(x);\n}", 7, "smp_mb() takes 0 arguments, found 1"),
        (HEAD + "P0(int *x)\n{\n\tWRITE_ONCE(x, 1);\n}", 7, "WRITE_ONCE() takes what a pointer points to: write *x"),
        (HEAD + "P0(int *x)\n{\n\t1 = 2;\n}", 7, "only registers and '*pointer' can be assigned to"),
        (HEAD + "P0(int *x)\n{\n\tint r0 = 1 && READ_ONCE(*x);\n}", 7, "a memory access behind '&&' may not happen"),
        (HEAD + "P0(int *x)\n{\n\tint r0 = 1 ? 2 : 3;\n}", 7, "'?:' is not supported"),
        (HEAD + "P0(int *x)\n{\n\tint r0 = x->next;\n}", 7, "an expression expected, found '>'"),
        (HEAD + "P0(int *x)\n{\n\tint r0 = x.next;\n}", 7, "structures are not supported"),
        (HEAD + "P0(int *x)\n{\n\tint r0 = &x;\n}", 7, "a parameter's name is an address already"),
        (HEAD + "P0(int *x)\n{\n\tint r0[2];\n}", 7, "local arrays are not supported"),
        (HEAD + "P0(int *x)\n{\n\tint r0 = $;\n}", 7, "unexpected '$'"),
        (HEAD + "P0(int *x)\n{\n\t(* never closed\n}", 7, "a comment that begins with (* does not end"),
        (HEAD + "P0(int *x)\n{\n\tsmp_mb();\n", 8, "an expression expected, found the end of the file"),
        (HEAD + THREAD, 12, "'exists', '~exists' or 'forall' expected, found the end of the file"),
        (HEAD + THREAD + "exists (0:r0)", 12, "'=' or '!=' expected, found ')'"),
        (HEAD + THREAD + "exists (0:r0=1) x", 12, "nothing expected behind the condition, found 'x'"),
        (HEAD + THREAD + "~forall (0:r0=1)", 12, "'~forall' is no condition"),
        (HEAD + THREAD + "exists (1:r0=1)", 0, "1:r0: there is no thread P1"),
        (HEAD + THREAD + "exists (0:r7=1)", 0, "0:r7: P0 has no register r7"),
        (HEAD + THREAD + "exists (nowhere=1)", 0, "nowhere: there is no shared variable nowhere"),
    ],
)
def test_complaints(text: str, line: int, complaint: str) -> None:
    with pytest.raises(LitmusError) as caught:
        parse(text)
    assert (caught.value.line, complaint in str(caught.value)) == (line, True), str(caught.value)


@pytest.mark.parametrize(
    ("thread", "complaint"),
    [
        ("int r0 = unknown;", "unknown is neither a parameter nor a register that has been set"),
        ("x = 1;", "x is a parameter: write \\*x to store there"),
    ],
)
def test_names_that_mean_nothing(thread: str, complaint: str) -> None:
    with pytest.raises(LitmusError, match=complaint) as caught:
        judge(written(thread))
    assert caught.value.line == 5


@given(st.sampled_from(SHAPES), st.data())
def test_a_broken_test_is_a_complaint_and_no_crash(name: str, data: st.DataObject) -> None:
    text = (FOLDER / f"{name}.litmus").read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 12, len(text))))
    put = data.draw(st.text(alphabet="(){}*;=~:/\\ \nPx0129if[]&", max_size=4))
    broken = text[:start] + put + text[end:]
    try:
        parse(broken)
        return
    except LitmusError as error:
        complaint = error
    assert 0 <= complaint.line <= broken.count("\n") + 1
    assert "\n" not in str(complaint)


@given(st.integers(-9, 9), st.integers(1, 9))
def test_division_is_that_of_c(left: int, right: int) -> None:
    quotient, rest = compute("/", left, right), compute("%", left, right)
    assert isinstance(quotient, int)
    assert isinstance(rest, int)
    assert quotient * right + rest == left
    assert abs(rest) < right
    assert rest == 0 or (rest < 0) == (left < 0)


def test_lines_are_counted_through_comments() -> None:
    words = tokens("a /* one\ntwo */ b // c\n(* d\n\n*) e")
    assert [(word.text, word.line) for word in words[:-1]] == [("a", 1), ("b", 2), ("e", 5)]


def test_every_primitive_can_be_called() -> None:
    assert len(PRIMITIVES) > 200
    for name, primitive in PRIMITIVES.items():
        arguments = {"*pointer": "*x", "pointer": "s" if "srcu" in name else "l" if "spin" in name else "x"}
        call = f"{name}({', '.join(arguments.get(kind, '1') for kind in primitive.parameters)});"
        lock = "spin_lock(l); " if name == "spin_unlock" else ""
        assert judge(written(lock + call)).executions == 1, name


def test_shapes_have_the_names_of_their_files() -> None:
    assert [shape(name).name for name in SHAPES] == SHAPES
