import pytest

from efficient_vits.cli._errors import UserError
from efficient_vits.cli._pairs import parse_pairs


def test_values_are_json_or_text() -> None:
    texts = ["n=3", "x=0.5", "yes=true", "size=[64, 96]", "name=geglu", "time=2:00", "e=a=b", "o="]
    assert parse_pairs(texts, option="--option") == {
        "n": 3,
        "x": 0.5,
        "yes": True,
        "size": [64, 96],
        "name": "geglu",
        "time": "2:00",
        "e": "a=b",
        "o": "",
    }


@pytest.mark.parametrize("text", ["", "a", "=1", "a b=1", "1a=2"])
def test_what_is_no_pair(text: str) -> None:
    with pytest.raises(UserError, match=r"--slurm .* is no KEY=VALUE"):
        parse_pairs([text], option="--slurm")
