import pytest

from efficient_vits.cli._errors import UserError
from efficient_vits.cli._values import parse_choices, parse_positive, parse_size


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("224x320", (224, 320))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "100x", "x100", "0x64", "-64", "6.4", "64x64x3", "1e2"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_size(text)
    assert repr(text) in str(error.value)
    assert "224x320" in str(error.value)


def test_positive_numbers() -> None:
    assert parse_positive("12", option="--top") == 12


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "many", "9" * 30])
def test_numbers_that_are_not_positive(text: str) -> None:
    with pytest.raises(UserError, match=r"^--top "):
        parse_positive(text, option="--top")


def test_choices_are_words_between_commas() -> None:
    assert parse_choices("b, a,b", ("a", "b", "c"), option="--x") == ["b", "a"]


@pytest.mark.parametrize("text", ["", "d", "a,,b", "a,d", "A"])
def test_choices_that_are_not_accepted(text: str) -> None:
    with pytest.raises(UserError, match="accepted are a, b, c"):
        parse_choices(text, ("a", "b", "c"), option="--x")
