from functools import cached_property

import pytest
from pydantic import ValidationError

from profiles.errors import InvalidInputError
from profiles.record import Record, parse_record


class Box(Record):
    width: int
    label: str = ""

    @cached_property
    def area(self):
        return self.width**2


def test_replace_validates_and_leaves_cached_properties_behind():
    box = Box(width=2)
    assert box.area == 4
    assert box.replace(width=3).area == 9
    with pytest.raises(ValidationError):
        box.replace(width="wide")
    with pytest.raises(ValidationError):
        box.replace(depth=1)


def test_parse_record_names_the_place():
    with pytest.raises(InvalidInputError, match=r"box\.width"):
        parse_record(Box, {"width": "wide"}, "box")
    with pytest.raises(InvalidInputError, match=r"box\.depth: unknown key"):
        parse_record(Box, {"width": 1, "depth": 1}, "box")
