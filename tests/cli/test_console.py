from rich.console import Console

from efficient_vits.cli._console import table


def test_names_are_never_cut() -> None:
    console = Console(width=20, markup=False)
    with console.capture() as capture:
        console.print(
            table(("name", "note"), [("hydra_ti16", "a long explanation")], left=("note",))
        )
    assert "hydra_ti16 " in capture.get()
    assert "a long explanation" not in capture.get()
