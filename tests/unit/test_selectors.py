"""Label selectors: every answer and every refusal in these tables is that of apimachinery's ``labels.Parse``."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_procmon.selectors import parse_selector


@pytest.mark.parametrize(
    ("selector", "selected", "others"),
    [
        ("", [{}, {"a": "b"}], []),
        (" \t", [{}], []),
        ("app=web", [{"app": "web"}, {"app": "web", "x": "y"}], [{}, {"app": "Web"}, {"app": ""}]),
        ("app == web", [{"app": "web"}], [{"app": "db"}]),
        ("app!=web", [{}, {"app": "db"}], [{"app": "web"}]),
        ("app=", [{"app": ""}], [{}, {"app": "web"}]),
        ("app=,tier", [{"app": "", "tier": "x"}], [{"tier": "x"}, {"app": ""}]),
        ("app", [{"app": ""}, {"app": "web"}], [{}, {"App": "web"}]),
        ("!app", [{}, {"x": "y"}], [{"app": ""}]),
        ("! app", [{}], [{"app": "web"}]),
        ("app in (web, db)", [{"app": "web"}, {"app": "db"}], [{}, {"app": "x"}]),
        ("app in(web)", [{"app": "web"}], [{"app": "db"}]),
        ("app notin (web,db)", [{}, {"app": "x"}], [{"app": "db"}]),
        ("app in (web,)", [{"app": "web"}, {"app": ""}], [{}]),
        ("app in (,)", [{"app": ""}], [{}, {"app": "web"}]),
        ("app in ()", [{"app": ""}], [{}, {"app": "web"}]),
        ("n>5", [{"n": "6"}, {"n": "10"}, {"n": "+6"}], [{}, {"n": "5"}, {"n": "x"}, {"n": ""}]),
        ("n<5", [{"n": "4"}, {"n": "-7"}], [{}, {"n": "5"}, {"n": "4.5"}]),
        # All at once
        (
            "app=web,tier!=front,!canary",
            [{"app": "web"}],
            [{"app": "web", "tier": "front"}, {"app": "web", "canary": ""}],
        ),
        ("x>1,x<3", [{"x": "2"}], [{"x": "3"}]),
        # Keywords are words like others where no operator can be
        ("app=in", [{"app": "in"}], [{}]),
        ("app in (in,notin)", [{"app": "notin"}], [{}]),
        ("k8s.io/app-name=web_1.2", [{"k8s.io/app-name": "web_1.2"}], [{"app-name": "web_1.2"}]),
    ],
)
def test_selection(selector: str, selected: list[dict[str, str]], others: list[dict[str, str]]) -> None:
    selects = parse_selector(selector)
    assert [labels for labels in selected if not selects(labels)] == []
    assert [labels for labels in others if selects(labels)] == []


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ("app=web,", "nothing comes after the last comma"),
        (",app", "',' is no label key"),
        ("app,,tier", "',' is no label key"),
        ("app=web tier=front", "a comma is missing between two requirements"),
        ("app=a=b", "a comma is missing between two requirements"),
        ("!app=web", "a comma is missing between two requirements"),
        ("app is web", "'is' is no operator"),
        ("app web", "'web' is no operator"),
        ("app ! web", "'!' is no operator"),
        ("app in web", "values in parentheses"),
        ("app in", "values in parentheses"),
        ("app in (web", "a closing parenthesis is missing"),
        ("app in (", "a closing parenthesis is missing"),
        ("app in (web db)", "a comma is missing before 'db'"),
        ("app in (web=db)", "a comma is missing before '='"),
        ("n>", "n > needs an integer"),
        ("n>x", "n > needs an integer"),
        ("n<-5", "'-5' is no label value"),
        ("=web", "'=' is no label key"),
        ("!", "'' is no label key"),
        ("-app", "'-app' is no label key"),
        ("K8s.io/app", "is no label key"),
        ("a.-b/app", "is no label key"),
        ("a/b/c", "is no label key"),
        (f"{'a' * 64}=b", "is no label key"),
        (f"{'a' * 254}/b", "is no label key"),
        ("app=a/b", "'a/b' is no label value"),
        ("app=é", "'é' is no label value"),
        (f"app={'a' * 64}", "is no label value"),
    ],
)
def test_refused_with_the_reason(selector: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        parse_selector(selector)


KEYS = st.from_regex(r"[a-z]{1,3}(/[A-Z]{1,3})?", fullmatch=True)
VALUES = st.from_regex(r"([a-z0-9]{1,3})?", fullmatch=True)


@given(st.dictionaries(KEYS, VALUES), KEYS, VALUES)
def test_operators_agree_with_each_other(labels: dict[str, str], key: str, value: str) -> None:
    def selects(selector: str) -> bool:
        return parse_selector(selector)(labels)

    assert selects(f"{key}={value}") == (labels.get(key) == value)
    assert selects(f"{key}!={value}") != selects(f"{key}={value}")
    assert selects(f"!{key}") != selects(key)
    assert selects(f"{key} in ({value})") == selects(f"{key} == {value}")
    assert selects(f"{key} notin ({value})") == selects(f"{key} != {value}")
    assert selects(",".join(f"{name}={labels[name]}" for name in labels))


@given(
    st.lists(st.one_of(st.sampled_from([*"(),=!<> ", "in", "notin", "a", "5"]), st.characters()), max_size=12).map(
        "".join
    )
)
def test_every_text_is_a_selector_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_selector(text)({"a": "5"})
