"""Which class names stand for which classes of pictures."""

import pytest

from vitdense.errors import UserError
from vitdense.zero_shot.matching import match_classes
from vitdense.zero_shot.prompts import class_names


def test_without_names_the_pictures_own_are_spoken() -> None:
    found = match_classes(["t_shirt", "fire  engine", "t-rex"], ())
    assert [each.words for each in found.classes] == [("t shirt",), ("fire engine",), ("t-rex",)]
    assert [each.name for each in found.classes] == ["t_shirt", "fire  engine", "t-rex"]
    assert (found.places, found.note) == ((0, 1, 2), "")


def test_names_are_found_whatever_their_case_and_order() -> None:
    found = match_classes(["T_Shirt", "dog"], class_names("zebra,dog,t-shirt=tee"))
    assert found.places == (2, 1)
    assert [each.name for each in found.classes] == ["zebra", "dog", "t-shirt"]
    assert not found.note


def test_an_exact_name_goes_before_a_similar_one() -> None:
    assert match_classes(["crane", "Crane"], class_names("Crane,crane")).places == (1, 0)


@pytest.mark.parametrize("given", ["plane,motor car,bird", "n1=plane,n2=motor car,n3=bird", "x,motor car,y"])
def test_as_many_other_names_are_taken_in_order(given: str) -> None:
    found = match_classes(["airplane", "automobile", "ship"], class_names(given))
    assert found.places == (0, 1, 2)
    assert [each.name for each in found.classes] == ["airplane", "automobile", "ship"]
    assert "in the order of the pictures' classes: airplane is" in found.note


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dog,cot", r"'cat' of them is not among the 2 class names, did you mean 'cot'\?"),
        ("dog,zebra,ship", "'cat' of them is not among the 3 class names"),
        ("horse", "'cat', 'dog' of them are not among the 1 class names.*cat=words"),
    ],
)
def test_what_can_not_be_brought_together_is_told(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match_classes(["cat", "dog"], class_names(given))


def test_two_classes_of_one_name_are_told() -> None:
    with pytest.raises(UserError, match=r"'t_shirt' and 't-shirt' are both 'T-Shirt' among the class names"):
        match_classes(["t_shirt", "t-shirt"], class_names("T-Shirt,dog"))


def test_names_of_folders_have_to_be_texts() -> None:
    with pytest.raises(UserError, match=r"a class name in the pictures' classes is not UTF-8"):
        match_classes(["caf\udce9"], ())
