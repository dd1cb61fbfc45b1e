import pytest

from penjing.cli.distill import _loss
from penjing.distill import LOSSES, kl, loss_named
from penjing.errors import RecipeError
from tests.distill.lessons import STUDENT, TEACHER, whole


def test_names_lead_to_their_losses() -> None:
    assert loss_named("kl", temperature=2.0)(whole(0)) == kl(2.0)(whole(0))
    assert loss_named("hint", student=STUDENT, teacher=TEACHER).taps == ((STUDENT, TEACHER),)
    assert all(make.__name__ == name and make.__doc__ for name, make in LOSSES.items())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="'standardised_kl' is not known; did you mean 'standardized_kl'"):
        loss_named("standardised_kl")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("kl", {"tau": 4}, "'tau'.*its settings: temperature"),
        ("logit_mse", {"temperature": 4}, "'temperature'.*its settings: none"),
        ("hint", {"student": "a"}, "'teacher'.*its settings: student, teacher"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name: str, settings: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=f"loss {name}: .*{says}"):
        loss_named(name, **settings)


def test_the_command_line_takes_numbers_and_names_of_modules() -> None:
    assert isinstance(_loss("kl:temperature=2"), type(loss_named("kl", temperature=2.0)))
    hint = _loss("hint:student=layer3,teacher=features.12")
    assert isinstance(hint, type(loss_named("hint", student="layer3", teacher="features.12")))
    for text in ("kl:temperature", "kl:temperature=", "hint:=layer3"):
        with pytest.raises(RecipeError, match="not understood"):
            _loss(text)
