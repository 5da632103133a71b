"""Names with numbers in brackets: what is wrong is said in the words of whoever wrote them."""

import pytest

from dggraph.errors import DggraphError
from dggraph.graph.wiring import WIRINGS, parse_wiring
from dggraph.ops.routing import find_router
from dggraph.system.specs import read_spec, read_sum

PYTHON_WORDS = ("argument:", "positional", "missing", "TypeError", "<ast", "line 1", "None", "()")


def test_numbers_are_read_as_they_are_written() -> None:
    assert read_spec(" watts_strogatz( 4,0.5, -1 ) ") == ("watts_strogatz", (4, 0.5, -1))
    assert read_spec("window(4,)") == read_spec("window(4)") == ("window", (4,))
    assert read_spec("complete") == read_spec("complete()") == ("complete", ())


def test_a_plus_joins_names_and_leaves_signs_of_numbers_alone() -> None:
    assert read_sum("window(4) + entry") == (("window", (4,)), ("entry", ()))
    assert read_sum("erdos_renyi(+0.5, 1e+0)") == (("erdos_renyi", (0.5, 1.0)),)


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
        (find_router, "node(1, 2)", r"0 to 1 number in brackets, node\(num_hidden\), and got 2"),
        (find_router, "stage(0.5)", "must be whole numbers"),
        (find_router, "node(-3)", "from 0 on"),
    ],
)
def test_what_is_wrong_with_a_spec(read: object, text: str, message: str) -> None:
    with pytest.raises(DggraphError, match=message) as error:
        read(text)  # type: ignore[operator]
    assert not [word for word in PYTHON_WORDS if word in str(error.value)]


def test_registered_factories_say_their_numbers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIRINGS, "star", lambda centre, radius=1: lambda size: ())
    with pytest.raises(DggraphError, match=r"'star' takes 1 to 2 numbers .*star\(centre, radius\)"):
        parse_wiring("star")
