from itertools import pairwise

import pytest

from profiles.token_density import density_of, load_token_densities


def test_every_script_has_one_row_and_ranges_do_not_overlap():
    rows = load_token_densities()
    assert len(rows) == 12
    assert len({row.script for row in rows}) == 12
    bounds = sorted(pair for row in rows for pair in row.bounds())
    assert len(bounds) == 24
    assert all(a <= b for a, b in bounds)
    assert all(first[1] < second[0] for first, second in pairwise(bounds))


@pytest.mark.parametrize(
    ("character", "script"),
    [
        ("a", "ascii letters and spaces"),
        ("\n", "ascii letters and spaces"),
        ("7", "ascii digits and signs"),
        ("é", "latin with marks"),
        ("ж", "cyrillic"),
        ("中", "chinese and japanese"),
        ("か", "chinese and japanese"),
        ("한", "hangul"),
        ("😀", "other"),
    ],
)
def test_characters_find_their_script(character, script):
    assert density_of(character).script == script


def test_all_of_ascii_is_covered():
    assert {density_of(chr(code)).script for code in range(128)} == {
        "ascii letters and spaces",
        "ascii digits and signs",
    }
