import subprocess
import sys

import pytest

from estimators.methods import get_method, methods
from profiles.errors import UnknownNameError


def test_a_method_is_the_same_by_name_and_in_the_registry():
    assert all(get_method(name) is method for name, method in methods().items())
    assert len(methods()) >= 8


@pytest.mark.parametrize("name", ["lorra", "base", "__init__", "", "a.b", "../x", "lora\n", "os"])
def test_what_is_no_method_is_refused(name):
    with pytest.raises(UnknownNameError, match="unknown method"):
        get_method(name)


def test_one_method_does_not_import_the_others():
    code = (
        "import sys; from estimators.methods import get_method; get_method('lora'); "
        "print('estimators.methods.oft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
