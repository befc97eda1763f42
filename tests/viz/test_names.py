"""Names from outside draw as themselves (F83)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msdetr.viz.style import safe, safe_html, safe_text, subplots


@pytest.mark.fault("F83")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["$\\alpha", "$x$", "\\$", "_hidden", "a\nb\x1b[31m", "日本語 🚗", "", "x" * 200, "\u202egnp"]
)
def test_draws_without_mathematics_warning_or_error(name):
    figure, (ax,) = subplots()
    ax.plot([0], [0], label=safe(name))
    ax.set_title(safe(name))
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == 1, "a leading underscore must not hide the entry"
    ax.legend()
    figure.draw_without_rendering()


@pytest.mark.fault("F83")
@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_drawn(name):
    figure, (ax,) = subplots(width=3, height=2)
    ax.set_title(safe(name))
    figure.draw_without_rendering()
    assert not set(safe_html(name)) & set("<>\"'") and "\x1b" not in safe_text(name)


@pytest.mark.fault("F83")
def test_html_is_escaped_and_terminal_is_inert():
    assert safe_html("<script>alert('x')</script>&") == "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;"
    assert safe_text("\x1b[2Jcat") == "\\u001b[2Jcat"
    assert safe("plain name") == "plain name"
