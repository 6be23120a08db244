"""Einsums against the cost of the products that they stand for."""

import pytest

from efficient_vits.efficiency.contractions import einsum_cost


def _nonzero(cost: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in cost.items() if n}


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], {"einsum": 2 * 3 * 5}),
        ("bhnd,bhmd->bhnm", [(2, 3, 7, 4), (2, 3, 5, 4)], {"einsum": 2 * 3 * 7 * 4 * 5}),
        ("...ij,...jk", [(6, 2, 3), (6, 3, 5)], {"einsum": 6 * 2 * 3 * 5}),
        ("...ij, jk -> ...ik", [(6, 2, 3), (3, 5)], {"einsum": 6 * 2 * 3 * 5}),
        ("...ij,...jk->...ik", [(4, 1, 2, 3), (6, 3, 5)], {"einsum": 4 * 6 * 2 * 3 * 5}),
        ("bn,bnd->bnd", [(2, 3), (2, 3, 4)], {"mul": 2 * 3 * 4}),
        ("i,j", [(3,), (4,)], {"mul": 12}),
        ("ij->ji", [(2, 3)], {}),
        ("ij->i", [(2, 3)], {"sum": 2 * 3 - 2}),
        # The index i belongs to the first operand alone: summed before the product.
        ("bij,bjk->bk", [(2, 7, 3), (2, 3, 5)], {"sum": 2 * 6 * 3, "einsum": 2 * 3 * 5}),
        # (2, 3) @ (3, 5), then (2, 5) @ (5, 7).
        ("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], {"einsum": 2 * 3 * 5 + 2 * 5 * 7}),
    ],
)
def test_cost(equation: str, shapes: list[tuple[int, ...]], expected: dict[str, int]) -> None:
    assert _nonzero(einsum_cost(equation, shapes)) == expected


def test_a_path_changes_the_order_and_so_the_cost() -> None:
    # (3, 5) @ (5, 7) first, then (2, 3) @ (3, 7).
    cost = einsum_cost("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], path=[1, 2, 0, 1])
    assert _nonzero(cost) == {"einsum": 3 * 5 * 7 + 2 * 3 * 7}


@pytest.mark.parametrize(
    ("equation", "shapes", "gradients", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 5)], (True, True), {"einsum": 2 * 30}),
        ("ij,jk->ik", [(2, 3), (3, 5)], (True, False), {"einsum": 30}),
        ("ij,jk->ik", [(2, 3), (3, 5)], (False, False), {}),
        # The product of the first two needs a gradient only if one of them does.
        ("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], (False, False, True), {"einsum": 70}),
        ("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], (True, False, False), {"einsum": 70 + 30}),
        # One vector is repeated along the matrix, the matrix is as large as the result.
        ("bn,bnd->bnd", [(2, 3), (2, 3, 4)], (True, True), {"mul": 2 * 24, "sum": 24}),
        ("ij->i", [(2, 3)], (True,), {}),
    ],
)
def test_cost_of_the_way_back(
    equation: str,
    shapes: list[tuple[int, ...]],
    gradients: tuple[bool, ...],
    expected: dict[str, int],
) -> None:
    assert _nonzero(einsum_cost(equation, shapes, gradients=gradients)) == expected
