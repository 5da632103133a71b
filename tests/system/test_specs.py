"""Names with arguments in brackets: what is wrong is said in the words of whoever wrote them."""

from typing import Any, Literal

import pytest

from dggraph.errors import DggraphError
from dggraph.graph.wiring import WIRINGS, parse_wiring
from dggraph.ops.gating import find_gate
from dggraph.ops.routing import find_router
from dggraph.system.specs import Spec, bind, read_spec, read_sum

PYTHON_WORDS = ("argument:", "positional", "missing", "TypeError", "<ast", "line 1", "None", "()")


def test_numbers_are_read_as_they_are_written() -> None:
    assert read_spec(" watts_strogatz( 4,0.5, -1 ) ") == ("watts_strogatz", (4, 0.5, -1), {})
    assert read_spec("window(4,)") == read_spec("window(4)") == Spec("window", (4,))
    assert read_spec("complete") == read_spec("complete()") == Spec("complete")


def test_options_follow_numbers_by_name() -> None:
    """Values are numbers, true or false, or words, in which a plus joins nothing."""
    found = read_spec("stage(16, inputs=pool+std , norm = rms, rate=1e-2, is_tied=true)")
    assert found.numbers == (16,)
    assert found.options == {"inputs": "pool+std", "norm": "rms", "rate": 0.01, "is_tied": True}
    assert [spec.name for spec in read_sum("window(reach=4)+entry")] == ["window", "entry"]


def test_an_option_is_passed_to_the_factory_by_its_name() -> None:
    assert set(parse_wiring("window(reach=1)")(3)) == set(parse_wiring("window(1)")(3))

    def make(size: int, rate: float, *, kind: Literal["a", "b"] = "a", flag: bool = False) -> Any:
        return size, rate, kind, flag

    text = "some(rate=2, kind=b, flag=true)"
    assert bind(read_spec(text), make, num_taken=1)(7) == (7, 2, "b", True)
    assert bind(read_spec("some(size=1, whatever=2)"), dict)() == {"size": 1, "whatever": 2}


def test_a_plus_joins_names_and_leaves_signs_of_numbers_alone() -> None:
    assert read_sum("window(4) + entry") == (Spec("window", (4,)), Spec("entry"))
    assert read_sum("erdos_renyi(+0.5, 1e+0)") == (Spec("erdos_renyi", (0.5, 1.0)),)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (
            parse_wiring,
            "window",
            r"'window' takes 1 number in brackets, window\(reach\), and got 0",
        ),
        (parse_wiring, "window(1, 2)", "and got 2"),
        (parse_wiring, "complete(3)", "'complete' takes no numbers in brackets, and got 1"),
        (parse_wiring, "watts_strogatz(4)", r"2 to 3 numbers in brackets, watts_strogatz\(k, p"),
        (parse_wiring, "window(wide)", "'wide' is none"),
        (parse_wiring, "window(1.5)", "1.5 must be a whole number"),
        (parse_wiring, "window(4", "'window\\(4' is neither a name"),
        (parse_wiring, "window(4)++entry", "'' is neither a name"),
        (find_router, "node+stage", "'node\\+stage' is neither a name"),
        (find_router, "node(1, 2)", r"0 to 1 number in brackets, node\(hidden\), and got 2"),
        (find_router, "stage(0.5)", "0.5 must be a whole number"),
        (find_router, "node(-3)", "from 0 on"),
        (find_router, "node(hidden=-3)", "from 0 on"),
        (find_router, "node(hiden=3)", "no option 'hiden'; .*Did you mean 'hidden'"),
        (find_router, "node(16, hidden=3)", "'hidden' twice: in order, and by name"),
        (find_router, "node(norm=rsm)", r"node\(norm=rsm\): it must be one of none, rms. Did"),
        (find_router, "node(hidden=wide)", "wide must be a whole number"),
        (find_router, "node(norm=rms, 16)", "'16' comes after options by name; write it first"),
        (find_router, "node(norm=)", "'norm=' is not an option. Write name=value"),
        (find_router, "node(norm=rms, norm=none)", "gives 'norm' twice"),
        (find_router, "constant(hidden=3)", "no option 'hidden'; it has no options"),
        (parse_wiring, "window(rich=4)", "no option 'rich'; its options are reach. Did you mean"),
        (parse_wiring, "watts_strogatz(4, p=few)", "few must be a number"),
        (find_gate, "anchord", "gate='anchord' is not one of .* Did you mean 'anchored'"),
        (find_gate, "anchored(3)", "'anchored' takes no numbers in brackets, and got 1"),
    ],
)
def test_what_is_wrong_with_a_spec(read: object, text: str, message: str) -> None:
    with pytest.raises(DggraphError, match=message) as error:
        read(text)  # type: ignore[operator]
    assert not [word for word in PYTHON_WORDS if word in str(error.value)]


def test_options_without_an_order_are_written_by_name() -> None:
    def make(model: str, *, reduction: int = 16) -> tuple[str, int]:
        return model, reduction

    assert bind(read_spec("some(reduction=4)"), make, num_taken=1)("m") == ("m", 4)
    with pytest.raises(DggraphError, match=r"got 1\. Write its options by name: reduction=VALUE"):
        bind(read_spec("some(4)"), make, num_taken=1)


def test_registered_factories_say_their_numbers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIRINGS, "star", lambda centre, radius=1: lambda size: ())
    with pytest.raises(DggraphError, match=r"'star' takes 1 to 2 numbers .*star\(centre, radius\)"):
        parse_wiring("star")
